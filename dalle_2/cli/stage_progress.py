"""What a person sees while pictures are sampled: a live bar for each stage, or lines where nobody watches."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any, Self

from dalle_2.cli.stopwatch import Stopwatch
from dalle_2.terminal import beneath, may_move, on_one_line


class StageProgress:
    """Is told of every step; used as a context. This one shows nothing, but has the watch count each stage."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, stage: str, step: Any) -> None:
        """Step `step.index` of `step.total` of a stage is done."""
        if step.index + 1 == step.total:
            self.ended(stage, step.total, self.watch.lap("drawing"))

    def ended(self, stage: str, steps: int, seconds: float) -> None:
        """A stage is done, that many seconds after the one before it, or after loading."""


class Bars(StageProgress):
    """A live bar for each stage, on stderr. totals: steps a stage over the whole run.

    A stage that isn't among them gets a bar when it begins, which grows with every further walk.
    """

    def __init__(self, totals: Mapping[str, int], watch: Stopwatch) -> None:
        super().__init__(watch)
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

        from dalle_2.bars import bars, named

        self._progress = bars(named(13), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._tasks = {
            stage: self._progress.add_task(stage, total=total, start=False) for stage, total in totals.items()
        }
        self._open: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, stage: str, step: Any) -> None:
        """Moves a stage's bar, whose clock starts with its first step."""
        super().step(stage, step)
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=0, start=False)
            self._open.add(stage)
        task = self._tasks[stage]
        if stage in self._open and step.index == 0:
            self._progress.update(task, total=(self._progress.tasks[task].total or 0) + step.total)
        self._progress.start_task(task)
        self._progress.advance(task)


class Lines(StageProgress):
    """A line on stderr whenever a stage has gone through its steps."""

    def ended(self, stage: str, steps: int, seconds: float) -> None:
        """Speaks after a stage's last step."""
        counted = "1 step" if steps == 1 else f"{steps} steps"
        print(f"{stage}: {counted}, {seconds:.1f} s", file=sys.stderr, flush=True)


class WarmUps(StageProgress):
    """Says at the end how much longer the first step of each stage took than the others: the time of compiling.

    It hands every step on to another progress.
    """

    def __init__(self, shown: StageProgress) -> None:
        super().__init__(shown.watch)
        self.shown, self.took = shown, dict[str, list[float]]()
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        self.shown.__enter__()
        self._since = time.monotonic()
        return self

    def __exit__(self, *given: object) -> None:
        self.shown.__exit__(*given)
        beyond = {stage: took[0] - median(took[1:]) for stage, took in self.took.items() if len(took) > 1}
        said = ", ".join(f"{stage} {max(0.0, seconds):.1f} s" for stage, seconds in beyond.items())
        if said:
            print(f"compiling, the first step beyond the others: {said}", file=sys.stderr, flush=True)

    def step(self, stage: str, step: Any) -> None:
        """Measures a step."""
        now = time.monotonic()
        self.took.setdefault(stage, []).append(now - self._since)
        self._since = now
        self.shown.step(stage, step)


@contextmanager
def loading(name: str, watch: Stopwatch, *, quiet: bool) -> Iterator[None]:
    """A word on a terminal while torch and the weights are read, which takes seconds; it goes when that is done."""
    screen = beneath(sys.stderr) if not quiet and may_move(sys.stderr) else None
    if screen:
        print(f"loading {on_one_line(name)} ...", end="", file=screen, flush=True)
    try:
        yield
    finally:
        if screen:
            print("\r\033[K", end="", file=screen, flush=True)
        watch.lap("loading")


def stage_progress(
    totals: Mapping[str, int], watch: Stopwatch, *, quiet: bool, compiled: bool = False
) -> StageProgress:
    """Bars where a person watches, lines where a file does."""
    if quiet:
        return StageProgress(watch)
    shown = Bars(totals, watch) if may_move(sys.stderr) else Lines(watch)
    return WarmUps(shown) if compiled else shown
