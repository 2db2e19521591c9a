"""Denoisers made of denoisers: classifier-free guidance, and thresholding after it."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoised, Denoiser
from dalle_2.sampling.noise_scheduler import per_row
from dalle_2.sampling.options import Threshold as Threshold
from dalle_2.scalars import plain_numbers

Condition = Mapping[str, Tensor]
Weight = float | Float[Tensor, "b"]


@runtime_checkable
class ConditionalDenoiser(Protocol):
    """A denoiser that is told what to denoise towards: `condition` holds tensors, a row for each of x_t."""

    def __call__(
        self, x_t: Float[Tensor, "b *shape"], t: Shaped[Tensor, "b"], condition: Condition
    ) -> Denoised: ...


@plain_numbers
def guide(
    network: ConditionalDenoiser,
    conditions: Sequence[Condition],
    weights: Weight | Sequence[Weight],
    *,
    max_rows: int | None = None,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): x_0 = u + sum_i w_i (c_i - u).

    conditions: the unconditional one first, then one or more; dicts of tensors with equal keys, a row for
    each row of
        x_t or a single row for all. The last is the fully conditioned one.
    weights: one for each condition after the first, a float or a tensor with one a row; a lone one may come
    bare.
        1 is off (nothing but the condition), 0 ignores the condition, above 1 is stronger.
    max_rows: the most rows that a call of the network may have. All conditions of a step are stacked into one
    batch,
        which is cut into pieces of that size; the result is the same.

    What no row needs isn't computed: at weight 1 the unconditional pass falls away.

    The sum is taken over x_0, and it is the same guidance as over eps or v: with x_t and t fixed each of the
    three is an affine function of the other, and an affine function commutes with a combination whose factors
    (1 - sum w, w_1, w_2, ...) add up to 1. That holds only before clipping, which is why `threshold` goes
    round the guided denoiser. A learned variance isn't affine in anything: it is taken from the fully
    conditioned row, unscaled.

    Raises UsageError where conditions and weights don't fit each other or the batch.
    """
    listed = [weights] if isinstance(weights, (int, float, Tensor)) else list(weights)
    _check(conditions, listed, max_rows)

    @lru_cache(maxsize=1)  # the very same tensors at every step, so that a network may keep what it makes of them
    def stacked(used: tuple[int, ...], rows: int) -> list[Condition]:
        return _stacked([conditions[i] for i in used], rows, max_rows)

    def guided(x_t: Tensor, t: Tensor) -> Denoised:
        factors = _factors(listed, x_t)
        used = [
            i for i, factor in enumerate(factors) if i == len(conditions) - 1 or bool((factor != 0).any())
        ]
        parts = stacked(tuple(used), len(x_t))
        answers = _answers(network, x_t, t, parts, len(used), max_rows)
        if len(used) == 1:
            return answers[0]
        terms = [per_row(factors[i], x_t, a.x_0.dtype) * a.x_0 for i, a in zip(used, answers, strict=True)]
        return Denoised(torch.stack(terms).sum(0), answers[-1].variance)

    return guided


def threshold(
    denoiser: Denoiser,
    mode: Threshold = "static",
    *,
    limits: tuple[float, float] = (-1.0, 1.0),
    percentile: float = 0.995,
) -> Denoiser:
    """Keeps x_0 within `limits`; goes round a guided denoiser, never inside it.

    "static" clips. "dynamic" (Saharia et al. 2022, §2.3) takes for each row the given percentile of |x_0|, at
    least the limit, clips to it and scales it down to the limit, so that strong guidance doesn't saturate; it
    needs limits that are symmetric about 0. "none" returns the denoiser as it is.

    Raises UsageError for limits or a percentile that make no sense.
    """
    low, high = limits
    if not low < high:
        raise UsageError(f"limits must rise, got {limits}")
    if mode == "none":
        return denoiser
    if mode == "dynamic" and (low != -high or not 0 < percentile <= 1):
        raise UsageError(
            "dynamic thresholding needs limits symmetric about 0 and a percentile in (0, 1], "
            f"got {limits} and {percentile}"
        )
    if mode not in ("static", "dynamic"):
        raise UsageError(f"threshold must be 'none', 'static' or 'dynamic', got {mode!r}")

    def thresholded(x_t: Tensor, t: Tensor) -> Denoised:
        answer = denoiser(x_t, t)
        x_0 = answer.x_0
        kept = x_0.clamp(low, high) if mode == "static" else _dynamic(x_0, high, percentile)
        return Denoised(kept, answer.variance)

    return thresholded


def _dynamic(x_0: Tensor, limit: float, percentile: float) -> Tensor:
    size = torch.quantile(x_0.abs().flatten(1), percentile, dim=1).clamp(min=limit)
    scale = per_row(size, x_0, x_0.dtype)
    return x_0.clamp(-scale, scale) * (limit / scale)


def _factors(weights: Sequence[Weight], x_t: Tensor) -> list[Tensor]:
    """The factor of each condition's x_0, a row each, in float64; they add up to 1."""
    rows = [_weight_rows(weight, len(x_t)) for weight in weights]
    return [1 - torch.stack(rows).sum(0), *rows]


def _weight_rows(weight: Weight, rows: int) -> Tensor:
    column = _exact(weight)
    if column.ndim == 1 and len(column) != rows:
        raise UsageError(
            f"got {len(column)} guidance weights for {rows} rows; give one a row, or a single number"
        )
    return column.expand(rows)


def _exact(weight: Weight) -> Tensor:
    """A number, or one a row, in float64 on the CPU."""
    if isinstance(weight, Tensor):
        return weight.detach().cpu().double()  # in this order: a Mac's GPU has no float64
    return torch.tensor(float(weight), dtype=torch.float64, device="cpu")


def _stacked(conditions: Sequence[Condition], rows: int, max_rows: int | None) -> list[Condition]:
    """All conditions below each other, a row for each of x_t, cut into as few pieces as `max_rows` allows."""
    names = conditions[0].keys()
    batch = {name: torch.cat([_condition_rows(c[name], rows, name) for c in conditions]) for name in names}
    size, count = max_rows or len(conditions) * rows, len(conditions) * rows
    return [{name: values[i : i + size] for name, values in batch.items()} for i in range(0, count, size)]


def _answers(
    network: ConditionalDenoiser, x_t: Tensor, t: Tensor, parts: Sequence[Condition], n: int, max_rows: int | None
) -> list[Denoised]:
    """The network's answer to each of n conditions."""
    size = max_rows or n * len(x_t)
    xs, times = (torch.split(torch.cat([values] * n), size) for values in (x_t, t))
    answers = [network(*piece) for piece in zip(xs, times, parts, strict=True)]
    x_0 = torch.cat([a.x_0 for a in answers]).chunk(n)
    variances = [a.variance for a in answers if a.variance is not None]
    variance = torch.cat(variances).chunk(n) if variances else [None] * n
    return [Denoised(*pair) for pair in zip(x_0, variance, strict=True)]


def _condition_rows(values: Tensor, rows: int, name: str) -> Tensor:
    if len(values) not in (1, rows):
        raise UsageError(
            f"condition {name!r} has {len(values)} rows for a batch of {rows}; give as many, or one for all"
        )
    return values.expand(rows, *values.shape[1:])


def _check(conditions: Sequence[Condition], weights: Sequence[Weight], max_rows: int | None) -> None:
    if len(conditions) < 2 or len(weights) != len(conditions) - 1:
        raise UsageError(
            "guidance needs the unconditional condition, then others with a weight each, "
            f"got {len(conditions)} conditions and {len(weights)} weights"
        )
    if any(c.keys() != conditions[0].keys() for c in conditions):
        raise UsageError(
            f"conditions must have equal keys to be stacked, got {[sorted(c) for c in conditions]}"
        )
    if not all(bool(_exact(weight).isfinite().all()) for weight in weights):
        raise UsageError(f"guidance weights must be finite, got {list(weights)}")
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"max_rows must be at least 1, got {max_rows}")
