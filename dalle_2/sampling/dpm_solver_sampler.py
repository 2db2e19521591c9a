"""DPM-Solver++(2M), and its stochastic form SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++")."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.jump import Jump
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.sampler import Move, Noise, Pairs, Sampler, guess


class DPMSolverSampler(Sampler):
    """Second order for one call of the network a step: the guess moves on as it did since the step before.

    stochastic: draws the noise anew at every step but the last, as DDPM does. The first step, which has none before it,
    and the last, which is infinitely long in half-log-SNR, are of first order. The midpoint form, as in diffusers by
    default.
    """

    def __init__(self, noise_scheduler: NoiseScheduler, *, stochastic: bool = False) -> None:
        super().__init__(noise_scheduler)
        self.draws_noise = stochastic
        self.name = "dpm++2m-sde" if stochastic else "dpm++2m"

    def _walk(self, denoiser: Denoiser, x: Tensor, pairs: Pairs, eta: float, noise: Noise | None) -> Iterator[Move]:
        before: tuple[Jump, Tensor] | None = None
        for t, s in pairs:
            jump = Jump.of(self.noise_scheduler, t, s)
            x_0 = guess(denoiser, x, t).x_0
            ahead = x_0 if before is None or jump.to_clean else _ahead(x_0, jump, *before)
            x = self._step(x, ahead, jump, noise)
            before = jump, x_0
            yield x_0, x

    def _step(self, x: Tensor, x_0: Tensor, jump: Jump, noise: Noise | None) -> Tensor:
        if not self.draws_noise:
            return jump.land(x, x_0, jump.kept)
        mean = jump.land(x, x_0, jump.kept_by_posterior)
        if jump.to_clean:
            return mean
        assert noise is not None
        return mean + math.sqrt(jump.posterior_variance) * noise(tuple(x.shape)).to(x)


def _ahead(x_0: Tensor, jump: Jump, before: Jump, x_0_before: Tensor) -> Tensor:
    """The guess half a jump ahead, on the line through the last two (algorithm 2)."""
    return torch.lerp(x_0_before, x_0, 1 + jump.length / (2 * before.length))
