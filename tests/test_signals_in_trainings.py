"""Signals in trainings, the short form, and what the command is held to that gets one."""

import signal
from pathlib import Path

import pytest
from hostile.commands import misreported
from hostile.saving import hostile, problems


def test_trainings_that_get_a_signal_come_to_the_same_weights() -> None:
    said = hostile("signals", tries=5, seed=2)
    assert said[-1]["tries"] == 5
    assert not problems(said)


@pytest.mark.parametrize(
    ("number", "status", "said", "wrong"),
    [
        (signal.SIGTERM, 0, "stopped at clip, not finished: the state", None),
        (signal.SIGTERM, 0, "all is well", "status 0, without a pipeline"),
        (signal.SIGTERM, 1, "no", "status 1"),
        (signal.SIGINT, 130, "interrupted", None),
        (signal.SIGINT, 130, "Traceback (most recent call last)", "a traceback"),
        (signal.SIGKILL, -9, "", None),
        (signal.SIGKILL, 1, "", "a kill ended it with 1"),
    ],
)
def test_what_a_command_is_held_to(number: int, status: int, said: str, wrong: str | None, tmp_path: Path) -> None:
    found = misreported(number, status, said, tmp_path)
    assert found is None if wrong is None else str(found).startswith(wrong)
