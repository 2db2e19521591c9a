"""What a person sees while something trains: a bar on a terminal, plain lines elsewhere."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dalle_2.bars import bars, named
from dalle_2.errors import UsageError
from dalle_2.terminal import may_move

SECONDS_BETWEEN_LINES = 15.0
WARNING = "warning"


@dataclass(frozen=True)
class Report:
    """One step: images seen so far, those of the step, and its logged values, none where nothing is learned.

    left: about how many seconds a training of several stages takes to the end of all, where that is known. skipped:
    steps of the run so far that were not finite and changed nothing.
    """

    images: int
    batch: int
    values: dict[str, float]
    left: float | None = None
    skipped: int = 0


@runtime_checkable
class Reporter(Protocol):
    """Is told of every step; `start` and `close` frame a run; `another` is one for a run at the same time."""

    def start(self, name: str, images: int, total: int | None) -> None: ...
    def step(self, report: Report) -> None: ...
    def close(self) -> None: ...
    def another(self) -> "Reporter": ...


class Silent:
    """Says nothing."""

    def start(self, name: str, images: int, total: int | None) -> None:
        """Nothing."""

    def step(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def another(self) -> "Silent":
        """As silent."""
        return self


class Telling:
    """Hands everything on as messages, to a reporter in another process; see `relay_to`."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def start(self, name: str, images: int, total: int | None) -> None:
        """A message."""
        self._tell(("start", name, images, total))

    def step(self, report: Report) -> None:
        """A message."""
        self._tell(("step", report))

    def close(self) -> None:
        """A message."""
        self._tell(("close",))

    def another(self) -> "Telling":
        """Not from here: a process that reports to another one runs a stage at a time."""
        raise UsageError("a training that is told to another process has one lane")


def relay_to(reporter: Reporter) -> Callable[[Any], None]:
    """What takes the messages of a `Telling` and tells `reporter`, and warns of what the other process warns of."""

    def relay(message: tuple[Any, ...]) -> None:
        name, *arguments = message
        if name == WARNING:
            warnings.warn(str(arguments[0]), stacklevel=1)
        else:
            getattr(reporter, name)(*arguments)

    return relay


@contextmanager
def warnings_told(tell: Callable[[Any], None]) -> Iterator[None]:
    """Inside, warnings are messages for `relay_to`."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: tell((WARNING, str(message)))
        yield


class Counting:
    """Tells a reporter of work that learns nothing; both calls take how many images are done, and of how many."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter, self._name, self._done = reporter, name, 0

    def begin(self, done: int, count: int) -> None:
        """Before the first step."""
        self._done = done
        self._reporter.start(self._name, done, count)

    def advance(self, done: int, count: int) -> None:
        """After each."""
        self._reporter.step(Report(done, done - self._done, {}))
        self._done = done


@dataclass
class Rate:
    """Images a second, forgetting slowly, and the seconds still to go."""

    per_second: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def update(self, images: int) -> float:
        """Counts `images` since the last call."""
        now = time.monotonic()
        current = images / max(now - self._last, 1e-9)
        self._last = now
        self.per_second = current if not self.per_second else 0.95 * self.per_second + 0.05 * current
        return self.per_second


class Bar:
    """A live bar with images/s, loss and the time left; bars `below` one another share the screen."""

    def __init__(self, console: Console | None = None, *, below: "Bar | None" = None) -> None:
        self._progress: Progress = below._progress if below else _screen(console)
        self._running: set[Bar] = below._running if below else set()
        self._task: TaskID | None = None
        self._rate = Rate()

    def start(self, name: str, images: int, total: int | None) -> None:
        """Shows the bar."""
        self._rate = Rate()
        self._running.add(self)
        self._progress.start()
        self._task = self._progress.add_task(name, total=total, completed=images, rate=0.0, loss="", whole="")

    def step(self, report: Report) -> None:
        """Moves the bar."""
        if self._task is not None:
            rate = self._rate.update(report.batch)
            loss = f"  loss {report.values['loss']:.4f}" if "loss" in report.values else ""
            loss += f"  {report.skipped} steps skipped" if report.skipped else ""
            self._progress.update(self._task, completed=report.images, rate=rate, loss=loss, whole=_whole(report))

    def close(self) -> None:
        """Leaves the finished bar on the screen."""
        self._running.discard(self)
        if not self._running:
            self._progress.stop()

    def another(self) -> "Bar":
        """A bar below this one."""
        return Bar(below=self)


def _screen(console: Console | None) -> Progress:
    """Where bars are drawn: the standard error, unless another console is given."""
    columns = (
        named(), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s{task.fields[loss]}"), TimeRemainingColumn(),
        TextColumn("{task.fields[whole]}"),
    )  # fmt: skip
    return bars(*columns, console=console)


class Lines:
    """A plain line every few seconds, for logs and pipes."""

    def __init__(self, file: TextIO | None = None, every: float = SECONDS_BETWEEN_LINES) -> None:
        self.file, self.every = file, every
        self._name, self._rate, self._said = "", Rate(), 0.0
        self._total: int | None = None

    def start(self, name: str, images: int, total: int | None) -> None:
        """Names the run."""
        self._name, self._total, self._rate, self._said = name, total, Rate(), time.monotonic()
        self._say(f"{name}: {'from the start' if not images else f'from image {images:,}'}, {_goal(total)}")

    def step(self, report: Report) -> None:
        """Says something if it is time."""
        rate = self._rate.update(report.batch)
        if time.monotonic() - self._said < self.every:
            return
        self._said = time.monotonic()
        parts = [f"{report.images:,} images", f"{rate:.0f} images/s"]
        parts += [f"{name} {_short(value)}" for name, value in report.values.items()]
        parts += [f"{report.skipped} steps skipped, not finite"] if report.skipped else []
        parts += [f"{minutes((self._total - report.images) / rate)} left"] if self._total else []
        parts += [whole] if (whole := _whole(report)) else []
        self._say(f"{self._name}: {'  '.join(parts)}")

    def close(self) -> None:
        """Nothing."""

    def another(self) -> "Lines":
        """Lines between these."""
        return Lines(self.file, self.every)

    def _say(self, line: str) -> None:
        print(line, file=self.file or sys.stderr, flush=True)


def reporter(*, quiet: bool = False) -> Reporter:
    """A bar where a person watches, lines where a file does."""
    if quiet:
        return Silent()
    return Bar() if may_move(sys.stderr) else Lines()


def _goal(total: int | None) -> str:
    return "without an end" if total is None else f"to {total:,} images"


def _whole(report: Report) -> str:
    return "" if report.left is None else f"about {minutes(report.left)} to the end of all stages"


def _short(value: float) -> str:
    """Four places, or four digits of what would be nothing then, such as a small learning rate."""
    return f"{value:.4f}" if abs(value) >= 0.01 or not value else f"{value:.4g}"


def minutes(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
