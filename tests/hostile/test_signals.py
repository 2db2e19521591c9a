"""Signals in trainings, states saved every half second: not one tensor differs, and no temporary is left."""

import pytest

from hostile.harness import seed_of, tries_of
from hostile.saving import hostile, problems

TRIES, COMMANDS = 400, 40


@pytest.mark.hostile
def test_trainings_that_get_a_signal_come_to_the_same_weights() -> None:
    assert not problems(hostile("signals", tries=tries_of(TRIES), seed=seed_of()))


@pytest.mark.hostile
def test_commands_of_one_lane_or_two_that_get_a_signal_come_to_the_same_pipeline() -> None:
    tries = max(1, COMMANDS * tries_of(TRIES) // TRIES)
    assert not problems(hostile("commands", tries=tries, seed=seed_of()))
