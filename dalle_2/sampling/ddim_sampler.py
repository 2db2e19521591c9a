"""DDIM (Song, Meng & Ermon 2021): noise to data in few steps; eta = 0 is deterministic, eta = 1 is DDPM."""

import math
from collections.abc import Iterator

from torch import Tensor

from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.sampler import DiffusionModel as DiffusionModel
from dalle_2.sampling.sampler import Move, Noise, Pairs, Sampler, guess
from dalle_2.sampling.sampler import Step as Step


class DDIMSampler(Sampler):
    """First order, one call of the network a step. The one sampler that takes eta: see `Sampler.sample`."""

    name = "ddim"
    takes_eta = True

    def _walk(self, denoiser: Denoiser, x: Tensor, pairs: Pairs, eta: float, noise: Noise | None) -> Iterator[Move]:
        for t, s in pairs:
            x_0 = guess(denoiser, x, t).x_0
            x = self._step(x, x_0, t, s, eta, noise)
            yield x_0, x

    def _step(self, x_t: Tensor, x_0: Tensor, t: float, s: float, eta: float, noise: Noise | None) -> Tensor:
        """Song et al. 2021, eq. 12, with eps = (x_t - sqrt(a_t) x_0) / sqrt(1 - a_t), as x_0 implies.

        Reading eps off x_0 keeps x_t and x_0 consistent after clipping. Its two factors are gathered in
        float64, since the two terms alone nearly cancel at the clean end.
        """
        a_t, a_s = self.noise_scheduler.alpha_bars(t, s)
        sigma = eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))  # eq. 16
        x_t_factor = math.sqrt(max(1 - a_s - sigma**2, 0.0) / (1 - a_t))
        x_0_factor = math.sqrt(a_s) - x_t_factor * math.sqrt(a_t)
        x_s = x_0_factor * x_0 + x_t_factor * x_t
        if noise is None or sigma == 0:
            return x_s
        return x_s + sigma * noise(tuple(x_t.shape)).to(x_t)
