"""What a killed training has left half-written goes at the next start, whoever has its process's number by now."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_train_cli import train

from dalle_2.errors import UsageError
from dalle_2.paths import _began, clear_leftovers
from dalle_2.training.alone import LANE_LOCK, alone


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says when a process began")
def test_a_number_that_another_process_got_since_keeps_nothing(tmp_path: Path) -> None:
    parent = os.getppid()
    assert 0 < _began(parent) < time.time()
    old, new = (tmp_path / f".state.{parent}-0123abc{digit}.pth" for digit in "01")
    old.touch()
    new.touch()
    os.utime(old, (0, _began(parent) - 60))
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [new.name]
    clear_leftovers(tmp_path, alone=True)
    assert not list(tmp_path.iterdir())


def test_a_process_that_just_began_is_dated_now() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert _began(process.pid) == pytest.approx(time.time(), abs=5)
        process.communicate(b"\n")
    assert _began(process.pid) == 0


def test_the_next_start_clears_a_run_of_everything_half_written(tmp_path: Path) -> None:
    stage = tmp_path / "run" / "clip"
    stage.mkdir(parents=True)
    alive = os.getppid()
    left = [
        stage / f".state.{alive}-0123abcd.pth", stage / f".begun.{alive}-0123abcd.json",
        tmp_path / "run" / f".tokens-0123.{alive}-0123abcd.npy",
    ]  # fmt: skip
    for path in left:
        path.touch()
    assert train(tmp_path, "clip", "shapes-micro").status == 0
    assert not any(path.exists() for path in left)


def test_a_lane_that_outlives_its_command_is_waited_for(tmp_path: Path) -> None:
    locked = pytest.raises(UsageError, match="another training is at work in")
    with alone(tmp_path, LANE_LOCK), locked, alone(tmp_path, LANE_LOCK, 0.3):
        pass
    with alone(tmp_path, LANE_LOCK, 0.3):
        pass
