"""A fault at every file operation of every save: the newest verified state loads, and the next save is whole."""

import pytest

from hostile.harness import seed_of, tries_of
from hostile.saving import hostile, problems

ALL = 10_400  # about: four kinds of fault, at all operations of all saves


@pytest.mark.hostile
def test_every_fault_in_every_save_leaves_a_whole_state() -> None:
    said = hostile("saves", names=[], stride=max(1, ALL // tries_of(ALL)), seed=seed_of())
    print(f"{sum(line.get('tries', 0) for line in said):,} tries, {len(problems(said))} failed")
    assert not problems(said)
