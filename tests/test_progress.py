"""What a person reads while something trains: a bar or lines, with a loss only where something is learned."""

import contextlib
import io

import pytest
from rich.console import Console

from dalle_2.training.progress import Bar, Counting, Lines, Report, Reporter, Telling, relay_to


def said_by(kind: str, report: Report) -> str:
    """What a reporter of that kind writes about one step."""
    with contextlib.redirect_stderr(io.StringIO()) as text:
        console = Console(stderr=True, force_terminal=True, width=200)
        reporter: Reporter = Lines(every=0.0) if kind == "lines" else Bar(console)
        reporter.start("clip", 0, 100)
        reporter.step(report)
        reporter.close()
    return text.getvalue()


@pytest.mark.parametrize("kind", ["lines", "bar"])
def test_a_loss_is_said_where_there_is_one(kind: str) -> None:
    assert "loss 0.2500" in said_by(kind, Report(10, 10, {"loss": 0.25}))
    silent = said_by(kind, Report(10, 10, {}))
    assert "images/s" in silent
    assert "loss" not in silent
    assert "nan" not in silent


def test_a_line_holds_every_value_and_the_time_left() -> None:
    line = said_by("lines", Report(50, 50, {"loss": 0.25, "accuracy": 0.5})).splitlines()[-1]
    assert line.startswith("clip: 50 images  ")
    assert "  loss 0.2500  accuracy 0.5000  " in line
    assert line.endswith(" s left")
    bare = said_by("lines", Report(50, 50, {})).splitlines()[-1]
    assert bare.count("  ") == 2  # between images, rate and the time left, and nothing in the gap


def test_counted_work_goes_on_where_it_stopped() -> None:
    reports = []

    class Kept(Lines):
        def step(self, report: Report) -> None:
            reports.append(report)

    watch = Counting(Kept(), "embeddings")
    with contextlib.redirect_stderr(io.StringIO()) as text:
        watch.begin(10, 30)
    watch.advance(25, 30)
    watch.advance(30, 30)
    assert text.getvalue() == "embeddings: from image 10, to 30 images\n"
    assert reports == [Report(25, 15, {}), Report(30, 5, {})]


def test_two_bars_share_the_screen() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as text:
        first = Bar(Console(stderr=True, force_terminal=True, width=200))
        second = first.another()
        first.start("draft", 0, 100)
        tell = relay_to(second)
        afar = Telling(tell)
        afar.start("prior", 0, 10)
        first.close()
        afar.step(Report(5, 5, {"loss": 0.125}))
        afar.close()
    assert "draft" in text.getvalue()
    assert "loss 0.1250" in text.getvalue()
    assert text.getvalue().index("draft") < text.getvalue().index("prior")
