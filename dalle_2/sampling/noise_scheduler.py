"""The noise table of a diffusion process, and the arithmetic between x_0, eps, v and x_t that rests on it.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, eq. 4), with t = 0 ... T-1: t = 0
carries one step of noise, and clean data is called t = -1 wherever a pair of steps ends there.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Shaped
from pydantic import Field, model_validator
from torch import Tensor

from dalle_2 import bounds
from dalle_2.config import Settings, parse
from dalle_2.errors import UsageError
from dalle_2.scalars import plain_numbers

Schedule = Literal["cosine", "linear", "explicit"]

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, §3.2: the last betas of the cosine table would otherwise reach 1


class NoiseSchedulerConfig(Settings):
    """What fixes a noise table. `betas` is given with schedule "explicit" and with no other."""

    T: int = Field(default=1000, ge=1, le=bounds.TIMESTEPS)
    schedule: Schedule = "cosine"
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    betas: tuple[float, ...] | None = Field(default=None, max_length=bounds.TIMESTEPS)

    @model_validator(mode="after")
    def _betas_fit(self) -> "NoiseSchedulerConfig":
        if (self.betas is not None) != (self.schedule == "explicit"):
            raise ValueError(
                f"betas belong to schedule 'explicit' and to no other, got schedule {self.schedule!r}"
            )
        if self.betas is None:
            return self
        if len(self.betas) != self.T:
            raise ValueError(f"got {len(self.betas)} betas for T = {self.T}; give one for each timestep")
        if not all(0 < beta < 1 for beta in self.betas):
            raise ValueError("every beta must lie between 0 and 1, both excluded")
        return self


class NoiseScheduler:
    """The table of betas, alphas and alpha_bars of T timesteps, in float64 on the CPU, whatever the default device.

    "cosine" is Nichol & Dhariwal 2021, eq. 17, with betas clipped at 0.999. "linear" is Ho et al. 2020, 1e-4
    to 0.02, scaled by 1000/T so that any T ends in nearly pure noise (and clipped alike, which only T < 21
    notices). A table of your own comes in as `betas`, or through `from_betas` and `from_alpha_bar`.

    Two schedulers are equal when their tables are. The tables are not meant to be written to.

    Raises ConfigError (a UsageError) for a T below 1, betas outside (0, 1), or another number of betas than
    T.
    """

    @plain_numbers
    def __init__(
        self,
        T: int = 1000,
        *,
        schedule: Schedule | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        betas: Sequence[float] | Float[Tensor, "T"] | None = None,
    ) -> None:
        values: dict[str, object] = {"T": T, "beta_start": beta_start, "beta_end": beta_end}
        values["schedule"] = schedule or ("cosine" if betas is None else "explicit")
        values["betas"] = None if betas is None else tuple(float(beta) for beta in betas)
        self._build(parse(NoiseSchedulerConfig, values, where="noise scheduler"))

    @classmethod
    def from_config(cls, config: NoiseSchedulerConfig) -> "NoiseScheduler":
        """The scheduler that a config describes; `scheduler.config` is the way back."""
        scheduler = cls.__new__(cls)
        scheduler._build(config)
        return scheduler

    @classmethod
    @plain_numbers
    def from_betas(cls, betas: Sequence[float] | Float[Tensor, "T"]) -> "NoiseScheduler":
        """A table of your own: beta of t = 0 ... T-1."""
        return cls(len(betas), betas=betas)

    @classmethod
    @plain_numbers
    def from_alpha_bar(cls, alpha_bar: Sequence[float] | Float[Tensor, "T"]) -> "NoiseScheduler":
        """A table of your own: alpha_bar of t = 0 ... T-1, falling from below 1 to above 0."""
        rows = torch.as_tensor(alpha_bar, dtype=torch.float64, device="cpu")
        before = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), rows[:-1]])
        return cls.from_betas((1 - rows / before).tolist())

    def _build(self, config: NoiseSchedulerConfig) -> None:
        self.config = config
        self.T = config.T
        self.betas = _betas(config)
        self.alphas = 1 - self.betas
        self.alpha_bar = self.alphas.cumprod(0)
        if not 0 < self.alpha_bar[-1] <= self.alpha_bar[0] < 1:
            first, last = float(self.alpha_bar[0]), float(self.alpha_bar[-1])
            raise UsageError(
                f"alpha_bar must stay between 0 and 1, got {first} at t = 0 and {last} at t = {self.T - 1}; "
                "choose betas that are neither so small nor so large"
            )
        self._log_snr = torch.logit(self.alpha_bar)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseScheduler) and self.same_table(other)

    def __hash__(self) -> int:
        return hash(self.T)

    def __repr__(self) -> str:
        return f"NoiseScheduler({self.described})"

    @property
    def described(self) -> str:
        """The table in words, for messages: "cosine, T = 1000"."""
        c = self.config
        ends = (c.beta_start, c.beta_end)
        custom = c.schedule == "linear" and ends != (1e-4, 0.02)
        return f"{c.schedule}{f' {ends[0]:g} to {ends[1]:g}' if custom else ''}, T = {self.T}"

    def same_table(self, other: "NoiseScheduler") -> bool:
        """Whether both hold the same betas, however described (to 1e-9: machines differ in a last digit)."""
        return self.T == other.T and torch.allclose(self.betas, other.betas, rtol=1e-9, atol=0)

    def get_beta_t(self, t: Shaped[Tensor, "b"], eta: float | Tensor | None = None) -> Float[Tensor, "b"]:
        """beta_t, (B,) integers of any kind -> (B,) on t's device, in PyTorch's default dtype.

        So what is made with it by hand stays in the dtype of the networks; `alpha_bar_at` has all digits.

        `eta` is part of the call for symmetry with the samplers and plays no part: it sets how much noise a
        *sampler* adds on the way back (Song et al. 2021, eq. 16), and the forward process that this table
        describes is the same for every eta.

        Raises UsageError where t is not a tensor of integers or leaves 0 ... T-1; no negative index wraps
        round.
        """
        return self._public(self.betas, t)

    def get_alpha_t(self, t: Shaped[Tensor, "b"], eta: float | Tensor | None = None) -> Float[Tensor, "b"]:
        """alpha_t = 1 - beta_t. The rest is as in `get_beta_t`."""
        return self._public(self.alphas, t)

    def get_alpha_bar_t(
        self, t: Shaped[Tensor, "b"], eta: float | Tensor | None = None
    ) -> Float[Tensor, "b"]:
        """alpha_bar_t, the product of alpha_0 ... alpha_t. The rest is as in `get_beta_t`."""
        return self._public(self.alpha_bar, t)

    def beta_at(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        """beta_t of whole timesteps in float64 (float32 where t's device has none), for further arithmetic."""
        return _beside(t, self._row(self.betas, t))

    def alpha_bars(self, *t: float) -> list[float]:
        """alpha_bar at some real-valued timesteps of [-1, T-1], as `alpha_bar_at`."""
        rows = torch.tensor(t, dtype=torch.float64, device="cpu")
        return [float(row) for row in self.alpha_bar_at(rows)]

    def alpha_bar_at(self, t: Shaped[Tensor, "b"]) -> Float64[Tensor, "b"]:
        """alpha_bar at real-valued timesteps of [-1, T-1], in float64 on the CPU: the samplers' accessor.

        Whole t give the table's own rows, t = -1 gives clean data, exactly 1. Between rows log(alpha_bar /
        (1 - alpha_bar)) is interpolated, which is the time that ODE solvers count in (Lu et al. 2022, §3);
        between clean data and row 0, where it is infinite, alpha_bar itself.

        Raises UsageError for t outside [-1, T-1], NaN included.
        """
        self.check(t, lowest=-1)
        t = t.detach().cpu().double()
        below = t.floor().clamp(min=0).long()
        part = t - below
        between = torch.lerp(
            self._log_snr[below], self._log_snr[(below + 1).clamp(max=self.T - 1)], part
        ).sigmoid()
        rows = torch.where(part == 0, self.alpha_bar[below], between)
        return torch.where(t < 0, 1 - (t + 1) * (1 - self.alpha_bar[0]), rows)

    def timestep_at(self, log_snr: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
        """The real-valued timestep of each log(alpha_bar / (1 - alpha_bar)): the way back from `alpha_bar_at`.

        What is noisier than T-1 or cleaner than 0 gives these two ends.
        """
        if self.T == 1:
            return torch.zeros_like(log_snr)
        rising = self._log_snr.flip(0)
        sought = log_snr.clamp(rising[0], rising[-1])
        above = torch.searchsorted(rising, sought).clamp(1, self.T - 1)
        part = (sought - rising[above - 1]) / (rising[above] - rising[above - 1])
        return self.T - above - part

    def add_noise(
        self, x_0: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *shape"]:
        """x_t from clean x_0 and noise eps (Ho et al. 2020, eq. 4), in x_0's dtype; t = -1 gives x_0 back."""
        a = self.alpha_bar_at(t)
        return combine(x_0, a.sqrt(), eps, (1 - a).sqrt())

    def x_0_from_eps(
        self, x_t: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *shape"]:
        """The clean x_0 that eps implies, in x_t's dtype. Errors in eps grow by 1 / sqrt(alpha_bar_t)."""
        a = self._noised(t)
        return combine(x_t, torch.ones_like(a), eps, -(1 - a).sqrt(), scale=a.rsqrt())

    def eps_from_x_0(
        self, x_t: Float[Tensor, "b *shape"], x_0: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *shape"]:
        """The noise eps that x_0 implies, in x_t's dtype. Errors in x_0 grow by 1 / sqrt(1/alpha_bar - 1)."""
        a = self._noised(t)
        return combine(x_t, torch.ones_like(a), x_0, -a.sqrt(), scale=(1 - a).rsqrt())

    def v_from(
        self, x_0: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *shape"]:
        """The velocity v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, appendix D)."""
        a = self._noised(t)
        return combine(x_0, -(1 - a).sqrt(), eps, a.sqrt())

    def x_0_from_v(
        self, x_t: Float[Tensor, "b *shape"], v: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *shape"]:
        """The clean x_0 that v implies (Salimans & Ho 2022, appendix D); well conditioned at every t."""
        a = self._noised(t)
        return combine(x_t, a.sqrt(), v, -(1 - a).sqrt())

    def eps_from_v(
        self, x_t: Float[Tensor, "b *shape"], v: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *shape"]:
        """The noise eps that v implies; well conditioned at every t."""
        a = self._noised(t)
        return combine(x_t, (1 - a).sqrt(), v, a.sqrt())

    def posterior_mean(
        self,
        x_0: Float[Tensor, "b *shape"],
        x_t: Float[Tensor, "b *shape"],
        t: Shaped[Tensor, "b"],
        s: Shaped[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """Mean of q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7); s is t - 1 unless given, any earlier step."""
        a_t, a_s = self._pair(t, s)
        jump = 1 - a_t / a_s
        return combine(x_0, a_s.sqrt() * jump / (1 - a_t), x_t, (a_t / a_s).sqrt() * (1 - a_s) / (1 - a_t))

    def posterior_variance(
        self, t: Shaped[Tensor, "b"], s: Shaped[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b"]:
        """Variance of q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7): the beta tilde of a row; 0 where s = -1."""
        a_t, a_s = self._pair(t, s)
        return _beside(t, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s))

    def _pair(self, t: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
        t = t.long() if _is_whole(t) else t  # it may be of few and unsigned bits
        s = t - 1 if s is None else s
        a_t, a_s = self._noised(t), self.alpha_bar_at(s)
        if not bool((s < t).all()):
            raise UsageError(
                f"s must be an earlier step than t in every row, got t = {t.tolist()}, s = {s.tolist()}"
            )
        return a_t, a_s

    def _noised(self, t: Tensor) -> Tensor:
        """alpha_bar where there must be noise: at t = -1 none of the conversions is defined."""
        self.check(t)
        return self.alpha_bar_at(t)

    def _public(self, table: Tensor, t: Tensor) -> Tensor:
        return self._row(table, t).to(torch.get_default_dtype()).to(t.device)

    def _row(self, table: Tensor, t: Tensor) -> Tensor:
        if not isinstance(t, Tensor) or not _is_whole(t):
            came = f"a tensor of {t.dtype}" if isinstance(t, Tensor) else type(t).__name__
            raise UsageError(
                f"t must be a tensor of integers of shape (B,), got {came}; convert it with t.long()"
            )
        self.check(t)
        return table[t.cpu().long()]

    def check(self, t: Shaped[Tensor, "..."], lowest: int = 0) -> None:
        """Raises UsageError for timesteps outside `lowest` ... T-1; what is being compiled asks for no numbers."""
        if torch.compiler.is_compiling():
            return
        t = t.long() if _is_whole(t) else t  # few bits can't hold T
        inside = (t >= lowest) & (t <= self.T - 1)
        if not bool(inside.all()):
            wrong = t[~inside].flatten()[0].item()
            raise UsageError(f"t must lie in {lowest} ... {self.T - 1} ({self.described}), got {wrong}")


def combine(
    x: Float[Tensor, "b *shape"],
    x_factor: Float64[Tensor, "b"],
    y: Float[Tensor, "b *shape"],
    y_factor: Float64[Tensor, "b"],
    *,
    scale: Float64[Tensor, "b"] | None = None,
) -> Float[Tensor, "b *shape"]:
    """(x_factor x + y_factor y) scale with a factor a row, in x's dtype.

    The factors come in float64, where differences such as 1 - alpha_bar keep their digits; the products are
    taken in float32 at least, whatever the dtype of x. Where x and y nearly cancel, a large `scale` after the
    sum multiplies one rounding error, and in the factors three.
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    total = per_row(x_factor, x, wide) * x + per_row(y_factor, y, wide) * y
    return (total if scale is None else total * per_row(scale, x, wide)).to(x.dtype)


def per_row(
    factor: Float[Tensor, "b"], like: Shaped[Tensor, "b *shape"], dtype: torch.dtype
) -> Float[Tensor, "b ..."]:
    """A factor a row, shaped (B, 1, 1, ...) to multiply `like` with, on its device."""
    return factor.to(dtype).to(like.device).view(-1, *[1] * (like.ndim - 1))


def timesteps_of(t: float, like: Shaped[Tensor, "b *shape"]) -> Shaped[Tensor, "b"]:
    """The timestep t for each row of a batch, on its device: whole numbers as int64, others as float32."""
    dtype = torch.int64 if isinstance(t, int) else torch.float32
    return torch.full((len(like),), t, dtype=dtype, device=like.device)


def _is_whole(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)


def _beside(t: Tensor, values: Tensor) -> Tensor:
    dtype = torch.float32 if t.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return values.to(dtype).to(t.device)


def _betas(config: NoiseSchedulerConfig) -> Float64[Tensor, "T"]:
    if config.betas is not None:
        return torch.tensor(config.betas, dtype=torch.float64, device="cpu")
    if config.schedule == "cosine":
        return _cosine_betas(config.T)
    scale = 1000 / config.T
    ends = config.beta_start * scale, config.beta_end * scale
    ramp = torch.linspace(*ends, config.T, dtype=torch.float64, device="cpu")
    return ramp.clamp(max=MAX_BETA)


def _cosine_betas(T: int) -> Float64[Tensor, "{T}"]:
    u = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
    f = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2  # Nichol & Dhariwal 2021, eq. 17
    return (1 - f[1:] / f[:-1]).clamp(max=MAX_BETA)
