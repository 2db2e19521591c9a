"""Work beside other work: what it tells arrives, its error too, and it stops when the other side does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dalle_2.errors import Dalle2Error, DataError
from dalle_2.training.beside import beside
from dalle_2.training.interrupt import stop_on_signals

Tell = Callable[[Any], None]


def counts(tell: Tell, upto: int) -> None:
    for number in range(upto):
        tell((number, os.getpid()))


def fails(tell: Tell) -> None:
    raise DataError("no pictures")


def dies(tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Awkward(Exception):
    """Can't be unpickled: it asks for two arguments and hands one on."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a + b)


def fails_awkwardly(tell: Tell) -> None:
    raise Awkward(1, 2)


def works_until_stopped(tell: Tell, folder: Path) -> None:
    with stop_on_signals() as stop:
        (folder / "begun").touch()
        while not stop():
            tell("a step")
            time.sleep(0.01)
    (folder / "saved").touch()


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.01)


def test_it_is_another_process_and_its_messages_arrive_in_order() -> None:
    heard: list[tuple[int, int]] = []
    with beside(counts, 5, hear=heard.append):
        pass
    assert [number for number, _ in heard] == [0, 1, 2, 3, 4]
    assert {pid for _, pid in heard}.isdisjoint({os.getpid()})


def test_its_error_is_raised_at_the_end() -> None:
    done = False
    with pytest.raises(DataError, match="^no pictures"), beside(fails, hear=print):
        done = True
    assert done


def test_an_error_that_does_not_survive_the_way_is_told_in_words() -> None:
    with pytest.raises(Dalle2Error, match="^Awkward: 3"), beside(fails_awkwardly, hear=print):
        pass


def test_a_killed_one_is_told() -> None:
    words = "was killed by SIGKILL: the same command goes on where it stopped"
    with pytest.raises(Dalle2Error, match=words), beside(dies, hear=print):
        pass


def test_what_can_not_be_heard_is_raised_and_blocks_nobody() -> None:
    def refuse(message: object) -> None:
        raise ValueError("deaf")

    with pytest.raises(ValueError, match="^deaf$"), beside(counts, 20_000, hear=refuse):  # more than a pipe holds
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_whatever_ends_this_side_lets_the_other_save(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), beside(works_until_stopped, tmp_path, hear=print):
        wait_for(tmp_path / "begun")
        raise error
    assert (tmp_path / "saved").exists()


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_beside import works_until_stopped
from dalle_2.training.beside import beside

if __name__ == "__main__":
    with beside(works_until_stopped, Path({folder!r}), hear=lambda message: None):
        time.sleep(600 if {busy} else 0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("busy", [True, False])
def test_it_saves_when_the_other_side_dies(number: signal.Signals, busy: bool, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), busy=busy))
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "begun")
    parent.send_signal(number)
    wait_for(tmp_path / "saved")
    assert parent.wait(60) != 0
