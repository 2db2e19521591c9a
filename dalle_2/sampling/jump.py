"""The arithmetic of one step from x_t to x_s, in float64: what every solver is made of."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dalle_2.sampling.noise_scheduler import NoiseScheduler


@dataclass(frozen=True)
class Level:
    """How strong signal and noise are at a timestep: x_t = signal x_0 + noise eps. Clean data has noise 0."""

    signal: float
    noise: float

    @classmethod
    def of(cls, alpha_bar: float) -> "Level":
        """The level where the table says alpha_bar."""
        return cls(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    @property
    def sigma(self) -> float:
        """Noise over signal, the noise of x_t / sqrt(alpha_bar_t) (Karras et al. 2022)."""
        return self.noise / self.signal

    @property
    def half_log_snr(self) -> float:
        """log(signal / noise), the time of Lu et al. 2022; infinite for clean data."""
        return math.inf if self.noise == 0 else math.log(self.signal / self.noise)


@dataclass(frozen=True)
class Jump:
    """From `now`, a timestep t, to `then`, a less noisy s."""

    now: Level
    then: Level

    @classmethod
    def of(cls, noise_scheduler: NoiseScheduler, t: float, s: float) -> "Jump":
        """The jump from t to s, real-valued timesteps of [-1, T-1]."""
        a_t, a_s = noise_scheduler.alpha_bars(t, s)
        return cls(Level.of(a_t), Level.of(a_s))

    @property
    def to_clean(self) -> bool:
        """Whether it ends at clean data."""
        return self.then.noise == 0

    @property
    def length(self) -> float:
        """In half-log-SNR: how long the jump is to solvers that count in it."""
        return self.then.half_log_snr - self.now.half_log_snr

    @property
    def shrinkage(self) -> float:
        """sigma then over sigma now, exp(-length); 0 to clean data."""
        return self.then.sigma / self.now.sigma

    @property
    def kept(self) -> float:
        """The factor of x_t where its noise stays and only shrinks (DDIM, eta = 0)."""
        return self.then.noise / self.now.noise

    @property
    def kept_by_posterior(self) -> float:
        """The factor of x_t where noise is drawn anew: that of q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        return self.kept * self.shrinkage

    @property
    def beta(self) -> float:
        """1 - alpha_bar_t / alpha_bar_s: the beta of the whole jump."""
        return 1 - (self.now.signal / self.then.signal) ** 2

    @property
    def posterior_variance(self) -> float:
        """Variance of q(x_s | x_t, x_0), the beta tilde of the whole jump (Ho et al. 2020, eq. 7)."""
        return self.then.noise**2 * (1 - self.shrinkage**2)

    @property
    def x_0_in_posterior(self) -> float:
        """The factor of x_0 in the mean of q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        return self.then.signal - self.kept_by_posterior * self.now.signal

    def land(
        self, x_t: Float[Tensor, "b *shape"], x_0: Float[Tensor, "b *shape"], kept: float
    ) -> Float[Tensor, "b *shape"]:
        """x_s with `kept` of x_t and as much of the guess x_0 as its signal then lacks."""
        return kept * x_t + (self.then.signal - kept * self.now.signal) * x_0
