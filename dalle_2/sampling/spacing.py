"""Which of the T timesteps a sampler visits (Lin et al. 2024, table 2)."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from dalle_2.errors import UsageError
from dalle_2.scalars import plain_numbers

Spacing = Literal["trailing", "leading", "linspace", "logsnr", "fast27"]

CLEAN = -1  # the timestep of clean data, where every walk ends


@plain_numbers
def spaced(T: int, steps: int, spacing: Spacing = "trailing") -> tuple[int, ...]:
    """The `steps` timesteps of 0 ... T-1 to visit, falling.

    "trailing" starts at T-1, where training data is noisiest, and is the only one of the three whose steps
    are equal up to clean data; "leading" ends at 0 and starts below T-1; "linspace" has both ends. Halves
    round to even, as the published samplers do. A single step always starts at T-1: from 0 it could only give
    the noise back. "logsnr" and "fast27" may lie between two timesteps: see `grid`.

    Raises UsageError unless 1 <= steps <= T, and for a spacing that is none of the three.
    """
    check_steps(T, steps)
    if steps == 1:
        return (T - 1,)
    if spacing == "trailing":  # exact fractions: in floats, 61 steps of 1000 would come out as 62
        return tuple(round(Fraction(T * k, steps)) - 1 for k in range(steps, 0, -1))
    if spacing == "leading":
        return tuple(k * (T // steps) for k in reversed(range(steps)))
    if spacing == "linspace":
        gap = (T - 1) / (steps - 1)  # in floats, ties and all, as published timesteps were made
        return tuple(round(k * gap) for k in reversed(range(steps)))
    raise UsageError(f"spacing must be 'trailing', 'leading', 'linspace', 'logsnr' or 'fast27', got {spacing!r}")


def walk(timesteps: Sequence[float]) -> list[tuple[float, float]]:
    """The pairs (t, s) from each timestep to the next; the last s is -1, clean data."""
    return list(pairwise([*timesteps, CLEAN]))


@plain_numbers
def check_timesteps(T: int, timesteps: Sequence[float]) -> tuple[float, ...]:
    """Timesteps of one's own, whole or real-valued, falling strictly within T-1 ... 0.

    Real-valued ones are rounded to float32, in which networks are told them, so that network and solver mean
    the same noise.

    Raises UsageError otherwise.
    """
    rows = tuple(_as_told(t) for t in timesteps)
    inside = bool(rows) and rows[0] <= T - 1 and rows[-1] >= 0
    if not inside or not all(t > s for t, s in pairwise(rows)):
        raise UsageError(f"timesteps must fall strictly within {T - 1} ... 0, got {list(timesteps)}")
    return rows


def _as_told(t: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", t))[0]
    return int(rounded) if rounded.is_integer() else rounded


def check_steps(T: int, steps: int) -> None:
    """Raises UsageError unless 1 <= steps <= T."""
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= T:
        raise UsageError(f"steps must be a whole number from 1 to T = {T}, got {steps!r}")
