"""What a sampler sees of a network: (x_t, t) -> the guess of clean data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.noise_scheduler import NoiseScheduler

Target = Literal["eps", "x_0", "v"]
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Denoised:
    """A denoiser's answer.

    x_0: the guess of clean data, in float32 (float64 where x_t came so).
    variance: where a network learned it, the place of the log-variance between the smallest and the largest
    of the
        posterior, 0 ... 1 (Nichol & Dhariwal 2021, eq. 15), which holds on every grid of steps.
    """

    x_0: Float[Tensor, "b *shape"]
    variance: Float[Tensor, "b *shape"] | None = None


@runtime_checkable
class Denoiser(Protocol):
    """Guesses clean data from x_t. t has one number a row, real where a solver stops between timesteps."""

    def __call__(self, x_t: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"]) -> Denoised: ...


def to_denoiser(
    predict: Predict, scheduler: NoiseScheduler, target: Target, *, learned_variance: bool = False
) -> Denoiser:
    """Wraps a network's raw prediction: the one place where eps, x_0 and v are told apart.

    predict: (x_t, t) -> the prediction, of x_t's shape; with `learned_variance` twice its channels, the
    second half
        being the variance in [-1, 1]. x_t reaches it in the sampler's dtype, float32; casting to the
        network's dtype is its own business, and its answer may come in any.

    The conversion runs in float32 whatever dtype the network works in: at the noisy end an eps in bfloat16
    would be multiplied by 1 / sqrt(alpha_bar), in the thousands.

    Raises UsageError, when called, where the prediction has another shape.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        wide = torch.promote_types(x_t.dtype, torch.float32)
        raw = predict(x_t, t).to(wide)
        variance = None
        if learned_variance and raw.shape[1] == 2 * x_t.shape[1]:
            raw, variance = raw.chunk(2, dim=1)
            variance = (variance + 1) / 2
            if target == "x_0":  # its error doesn't fade with the noise, and asks for variances that would drown a jump
                variance = variance.clamp(0, 1)
        if raw.shape != x_t.shape or (variance is None and learned_variance):
            doubled = " with twice the channels" if learned_variance else ""
            raise UsageError(
                f"the network answered with shape {tuple(raw.shape)} to x_t of shape {tuple(x_t.shape)}; "
                f"expected that shape{doubled}"
            )
        return Denoised(convert(raw, x_t.to(wide), t, scheduler, source=target, to="x_0"), variance)

    return denoise


def convert(
    value: Float[Tensor, "b *shape"],
    x_t: Float[Tensor, "b *shape"],
    t: Shaped[Tensor, "b"],
    scheduler: NoiseScheduler,
    *,
    source: Target,
    to: Target,
) -> Float[Tensor, "b *shape"]:
    """One of eps, x_0, v from another, given the x_t they share. Differentiable in `value` and x_t.

    Raises UsageError for a name that is none of the three, and for t outside 0 ... T-1.
    """
    for name in (source, to):
        if name not in ("eps", "x_0", "v"):
            raise UsageError(f"a prediction is 'eps', 'x_0' or 'v', got {name!r}")
    if source == to:
        return value
    routes: dict[tuple[str, str], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        ("eps", "x_0"): scheduler.x_0_from_eps,
        ("v", "x_0"): scheduler.x_0_from_v,
        ("x_0", "eps"): scheduler.eps_from_x_0,
        ("v", "eps"): scheduler.eps_from_v,
    }
    if to != "v":
        return routes[source, to](x_t, value, t)
    x_0 = value if source == "x_0" else scheduler.x_0_from_eps(x_t, value, t)
    eps = value if source == "eps" else scheduler.eps_from_x_0(x_t, value, t)
    return scheduler.v_from(x_0, eps, t)
