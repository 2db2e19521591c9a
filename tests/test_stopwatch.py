"""Where a command's seconds went: from the start of its process, each counted once, and what is shown adds up."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_2.cli import stopwatch
from dalle_2.cli.main import main
from dalle_2.cli.stopwatch import Stopwatch

SUM = re.compile(r"\(of ([\d.]+) s: (.*)\)$", re.MULTILINE)
STAGE = re.compile(r"^(?:prior|decoder|upsampler-32): \d+ steps?, ([\d.]+) s$", re.MULTILINE)


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock, which stands still otherwise."""
    now = [1000.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def parts_of(words: str) -> dict[str, float]:
    return {kind: float(seconds) for seconds, kind in (part.split(" ", 1) for part in words.split(", "))}


def test_a_process_knows_how_old_it_is() -> None:
    code = "import time; time.sleep(0.5); from dalle_2.machine import process_age; print(process_age())"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if sys.platform == "linux":
        assert 0.5 <= float(done.stdout) <= time.monotonic() - start + 0.02
    else:
        assert done.stdout == "None\n"


def test_a_command_counts_from_the_start_of_its_process(
    hand: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopwatch, "process_age", lambda: 1.25)
    stopwatch.begin(with_process=True)
    hand(1.0)
    watch = Stopwatch()  # made after what came first
    assert watch.lap("loading") == pytest.approx(2.2)
    stopwatch.begin(with_process=False)  # a command that another program calls
    hand(0.5)
    assert Stopwatch().lap("loading") == pytest.approx(0.5)
    monkeypatch.setattr(stopwatch, "process_age", lambda: None)
    stopwatch.begin(with_process=True)
    assert Stopwatch().lap("loading") == 0


@given(st.lists(st.tuples(st.sampled_from(["loading", "drawing", "writing", "other"]), st.floats(0, 3)), max_size=30))
def test_the_sum_adds_up_to_the_last_digit(laps: list[tuple[stopwatch.Kind, float]]) -> None:
    now = [50.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0]))
        stopwatch.begin(with_process=False)
        watch = Stopwatch()
        shown = 0.0
        for kind, seconds in laps:
            now[0] += seconds
            shown += watch.lap(kind)
        found = SUM.search(f"({watch.sum()})")
    whole = sum(seconds for _, seconds in laps)
    assert shown == pytest.approx(whole, abs=0.051)
    if found:
        assert sum(parts_of(found[2]).values()) == pytest.approx(float(found[1]), abs=1e-9)
        assert float(found[1]) == pytest.approx(whole, abs=0.051)
    else:
        assert re.fullmatch(r"[\d.]+ s", watch.sum())


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that has gone on by 0.37 seconds whenever it is asked, so that each lap is seen."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 0.37
        return now[0]

    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=monotonic))


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("further", [["--n", "2", "--grid"], ["--n", "5"], ["--best-of", "3"]])
def test_the_stages_of_a_command_are_its_drawing(
    further: list[str], micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a red circle", *further, "--pipeline", str(micro_pipeline), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    whole, parts = SUM.findall(said)[0]
    drawing = sum(map(float, STAGE.findall(said)))
    assert list(parts_of(parts)) == ["loading", "drawing", "other", "writing"]
    assert drawing == pytest.approx(parts_of(parts)["drawing"], abs=1e-9)
    assert sum(parts_of(parts).values()) == pytest.approx(float(whole), abs=1e-9)


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("command", ["variations", "upscale"])
def test_edits_and_enlargements_say_it_too(
    command: str, micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--pipeline", str(micro_pipeline), "--device", "cpu"]
    assert main(["generate", "a red circle", "--out", ".", *place]) == 0
    (picture,) = Path().glob("*.png")
    capsys.readouterr()
    assert main([command, str(picture), *place]) == 0
    whole, parts = SUM.findall(capsys.readouterr().err)[0]
    assert {"loading", "drawing", "writing"} <= set(parts_of(parts))
    assert sum(parts_of(parts).values()) == pytest.approx(float(whole), abs=1e-9)


def test_a_quiet_command_says_nothing(micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a red circle", "--quiet", "--pipeline", str(micro_pipeline), "--device", "cpu"]
    assert main(words) == 0
    assert capsys.readouterr() == ("", "")
