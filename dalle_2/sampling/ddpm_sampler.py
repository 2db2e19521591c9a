"""DDPM's ancestral sampling (Ho et al. 2020) on any grid of steps, with a fixed, a learned or an analytic variance."""

import math
from collections.abc import Iterator
from typing import Literal, Self, get_args

from jaxtyping import Float
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoised, Denoiser
from dalle_2.sampling.jump import Jump
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.sampler import HasNoiseTable, Move, Noise, Pairs, Sampler, guess

Variance = Literal["learned", "smallest", "largest", "analytic"]

# On the last steps a table that is a little off would be seen, and so Bao et al. 2022 clip what it asks for: here, from
# a sigma below 0.1 on, to two of 255 levels of pixels in [-1, 1] on average, where the posterior doesn't need more.
LAST, FAINT = 0.1, 2 * 2 / 255


class DDPMSampler(Sampler):
    """Adds fresh noise at every step but the last.

    variance: "learned" takes the network's own where it learned one (Nichol & Dhariwal 2021, eq. 15, between the two
        bounds of the jump that is made), else the smallest; "smallest" is the posterior's, which is what DDIM adds at
        eta = 1; "largest" the jump's beta; "analytic" the best for the mean square of the predicted noise (Bao et al.
        2022, theorem 1).
    eps_mean_square: for "analytic": E |eps(x_t, t)|^2 / d for t = 0 ... T-1, see `mean_squares.py`. By default
        `sample` takes the model's own.

    Raises UsageError for an unknown variance and a table of another length.
    """

    draws_noise = True

    def __init__(
        self,
        noise_scheduler: NoiseScheduler,
        *,
        variance: Variance = "learned",
        eps_mean_square: Float[Tensor, "rows"] | None = None,
    ) -> None:
        super().__init__(noise_scheduler)
        if variance not in get_args(Variance):
            raise UsageError(f"variance must be one of {', '.join(get_args(Variance))}, got {variance!r}")
        if eps_mean_square is not None and len(eps_mean_square) != noise_scheduler.T:
            raise UsageError(
                f"eps_mean_square must have a row for each of {noise_scheduler.T} timesteps, got {len(eps_mean_square)}"
            )
        self.variance, self.eps_mean_square = variance, eps_mean_square
        self.name = "ddpm-analytic" if variance == "analytic" else "ddpm"

    def fitted(self, model: HasNoiseTable) -> Self:
        """Takes the model's table of mean squares where the variance needs one and none was given."""
        table = getattr(model, "eps_mean_square", None)
        if self.variance != "analytic" or self.eps_mean_square is not None or table is None:
            return self
        return type(self)(self.noise_scheduler, variance=self.variance, eps_mean_square=table)

    def _check_ready(self, stage: str) -> None:
        if self.variance == "analytic" and self.eps_mean_square is None:
            raise UsageError(
                f"the {stage} has no table for the sampler ddpm-analytic (`dalle2 train` leaves one in a diffusion "
                "prior, nowhere else): choose ddpm for this stage, or make one in Python with "
                "dalle_2.sampling.mean_squares"
            )

    def _walk(self, denoiser: Denoiser, x: Tensor, pairs: Pairs, eta: float, noise: Noise | None) -> Iterator[Move]:
        for t, s in pairs:
            jump = Jump.of(self.noise_scheduler, t, s)
            answer = guess(denoiser, x, t)
            mean = jump.land(x, answer.x_0, jump.kept_by_posterior)
            x = mean if jump.to_clean else self._noised(mean, answer, jump, t, noise)
            yield answer.x_0, x

    def _noised(self, mean: Tensor, answer: Denoised, jump: Jump, t: float, noise: Noise | None) -> Tensor:
        assert noise is not None
        z = noise(tuple(mean.shape)).to(mean)
        if self.variance == "learned" and answer.variance is not None:
            low, high = math.log(jump.posterior_variance), math.log(jump.beta)
            return mean + (0.5 * (low + (high - low) * answer.variance)).exp() * z
        return mean + math.sqrt(self._fixed_variance(jump, t)) * z

    def _fixed_variance(self, jump: Jump, t: float) -> float:
        if self.variance == "largest":
            return jump.beta
        if self.variance != "analytic":
            return jump.posterior_variance
        assert self.eps_mean_square is not None
        variance = analytic_variance(jump, _row(self.eps_mean_square, t))
        most = FAINT**2 * math.pi / 2  # E |sigma z| = sigma sqrt(2 / pi)
        return max(jump.posterior_variance, min(variance, most)) if jump.now.sigma < LAST else variance


def analytic_variance(jump: Jump, mean_square: float) -> float:
    """The variance that brings the reverse process nearest to the true one (Bao et al. 2022, theorem 1).

    It is the posterior's with x_0 known, and what not knowing x_0 adds. mean_square: E |eps|^2 / d of the predicted
    noise, which falls below 1 by the share of the noise that is left open. Estimates are held within the bounds of
    theorem 2: the share within 0 ... 1, the variance of x_0 below that of data in [-1, 1] or of unit variance.
    """
    left_open = 1 - min(max(mean_square, 0.0), 1.0)
    of_x_0 = min(left_open * jump.now.sigma**2, 1.0)
    return jump.posterior_variance + jump.x_0_in_posterior**2 * of_x_0


def _row(table: Tensor, t: float) -> float:
    """The table at a real-valued timestep."""
    below = math.floor(t)
    low, high = float(table[below]), float(table[min(below + 1, len(table) - 1)])
    return low + (t - below) * (high - low)
