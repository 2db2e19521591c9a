"""Confidence intervals of measured rates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dalle_2.errors import UsageError

Z = 1.959964  # 95 %


class Rate(NamedTuple):
    """`hits` of `n` tries, their rate `value` and its Wilson interval; all None where nothing was tried."""

    hits: int
    n: int
    value: float | None
    low: float | None
    high: float | None


def wilson(hits: int, n: int, z: float = Z) -> Rate:
    """The rate of `hits` in `n` with its Wilson score interval (Wilson 1927), 95 % by default."""
    if n == 0:
        return Rate(hits, n, None, None, None)
    rate = hits / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Rate(hits, n, rate, max(middle - reach, 0.0), min(middle + reach, 1.0))


class Difference(NamedTuple):
    """How much larger a rate is than another over the same `n` tries, with its interval; `gained` and `lost` tries."""

    gained: int
    lost: int
    n: int
    value: float
    low: float
    high: float


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool], z: float = Z) -> Difference:
    """The rate of `ours` less that of `theirs`, try by try, with its interval (Bonett & Price 2012), 95 % by default.

    It counts only the tries on which the two disagree, as McNemar's test does, and is far narrower than the intervals
    of both rates where they agree on most. Raises UsageError for unequal numbers of tries, and for none.
    """
    if len(ours) != len(theirs) or not ours:
        raise UsageError(f"a paired difference needs as many tries on both sides, got {len(ours)} and {len(theirs)}")
    pairs, n = list(zip(ours, theirs, strict=True)), len(ours)
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    low, high = max(up - down - reach, -1.0), min(up - down + reach, 1.0)
    return Difference(gained, lost, n, (gained - lost) / n, low, high)
