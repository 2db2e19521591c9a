"""Confidence intervals of measured rates."""

import math
from typing import NamedTuple


class Rate(NamedTuple):
    """`hits` of `n` tries, their rate `value` and its Wilson interval; all None where nothing was tried."""

    hits: int
    n: int
    value: float | None
    low: float | None
    high: float | None


def wilson(hits: int, n: int, z: float = 1.959964) -> Rate:
    """The rate of `hits` in `n` with its Wilson score interval (Wilson 1927), 95 % by default."""
    if n == 0:
        return Rate(hits, n, None, None, None)
    rate = hits / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Rate(hits, n, rate, max(middle - reach, 0.0), min(middle + reach, 1.0))
