"""Intervals of paired rates hold what they promise."""

import math

import pytest

from dalle_2.errors import UsageError
from dalle_2.evaluation.intervals import paired_difference


def tries(gained, lost, both, neither):
    ours = [True] * gained + [False] * lost + [True] * both + [False] * neither
    theirs = [False] * gained + [True] * lost + [True] * both + [False] * neither
    return ours, theirs


def test_the_difference_counts_where_the_two_disagree():
    found = paired_difference(*tries(gained=30, lost=10, both=40, neither=20))
    assert found[:4] == (30, 10, 100, 0.2)
    assert found.low < 0.2 < found.high
    same = paired_difference(*tries(gained=0, lost=0, both=400, neither=100))
    assert same.value == 0
    assert -0.01 < same.low < 0 < same.high < 0.01
    turned = paired_difference(*reversed(tries(gained=30, lost=10, both=40, neither=20)))
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize(("p", "q"), [(0.2, 0.1), (0.05, 0.05), (0.3, 0.02), (0.02, 0.0)])
def test_the_interval_covers_the_truth_nineteen_times_in_twenty(p, q):
    """Every possible outcome of 40 tries, weighted with its probability."""
    n, covered = 40, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            rest = n - gained - lost
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            found = paired_difference(*tries(gained, lost, rest, 0))
            covered += ways * p**gained * q**lost * (1 - p - q) ** rest * (found.low <= p - q <= found.high)
    assert covered > 0.93


def test_unequal_numbers_of_tries_are_refused():
    for ours, theirs in (([True], []), ([], []), ([True], [True, False])):
        with pytest.raises(UsageError, match=f"as many tries on both sides, got {len(ours)} and {len(theirs)}"):
            paired_difference(ours, theirs)
