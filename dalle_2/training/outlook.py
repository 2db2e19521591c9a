"""Where a whole training stands: the stage of how many, what it leaves to read, and about how long all still take."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dalle_2.training.progress import Report, Reporter

WHAT = {
    "clip": "CLIP learns which captions and pictures belong together",
    "prior": "the prior learns to draw a picture's embedding for a caption's",
    "prior_ar": "the autoregressive prior learns the same, number by number",
    "draft": "the draft learns to draw a first picture from an embedding in one go",
    "decoder": "the decoder learns to draw a picture from an embedding",
    "decoder_inpaint": "the decoder learns to fill holes",
    "upsampler": "the upsampler learns to enlarge the decoder's pictures",
    "upsampler_2": "the second upsampler learns to enlarge the first one's",
}
SHORT = (
    "images are those seen so far, each as often as it came; loss falls as a stage learns (of stages it can't be "
    "compared); grad_norm is the length of the gradient, lr the learning rate, accuracy the share of right guesses; "
    "contrastive, phrases and picture are parts of CLIP's loss, simple and bits parts of a decoder's"
)
FIRST = 20  # steps of a stage before its rate is believed


@dataclass
class Outlook:
    """The stages of a recipe in order, what each costs from start to end, in any unit, and which are trained aside.

    A stage that has run says how many seconds a unit takes here; those to come are taken to go at the same rate, which
    makes a sum that is about right.
    """

    stages: Sequence[str]
    costs: Mapping[str, float]
    aside: Sequence[str] = ()
    done: dict[str, float] = field(default_factory=dict)  # shares
    _rates: dict[str, float] = field(default_factory=dict)  # seconds a unit

    def number(self, stage: str) -> int:
        """Its place among the stages, from 1."""
        return self.stages.index(stage) + 1

    def advance(self, stage: str, share: float, rate: float | None) -> None:
        """A stage has come so far; rate: seconds that all of it takes, where that is known."""
        self.done[stage] = share
        if rate is not None and self.costs.get(stage):
            self._rates[stage] = rate / self.costs[stage]

    def seconds_left(self) -> float | None:
        """To the end of all stages; None before any rate is known. Of two lanes the longer one counts."""
        if not self._rates:
            return None
        usual = sum(self._rates.values()) / len(self._rates)
        left = {
            stage: self.costs.get(stage, 0) * (1 - self.done.get(stage, 0)) * self._rates.get(stage, usual)
            for stage in self.stages
        }
        aside = sum(left[stage] for stage in self.stages if stage in self.aside)
        return max(aside, sum(left.values()) - aside)


class Placed:
    """Tells a reporter of a stage, and says before where it stands among all and what it leaves to read."""

    def __init__(self, reporter: Reporter, outlook: Outlook, say: Callable[[str], None], where: str) -> None:
        self._reporter, self._outlook, self._say, self._where = reporter, outlook, say, where
        self._stage, self._total, self._first = "", 0, 0
        self._steps, self._began = 0, 0.0

    def start(self, name: str, images: int, total: int | None) -> None:
        """Says what begins."""
        self._stage, self._total, self._first, self._steps = name, total or 0, images, 0
        if name in self._outlook.stages:
            number, count = self._outlook.number(name), len(self._outlook.stages)
            self._say(f"stage {number} of {count}: {WHAT[name]}; log and samples in {self._where}/{name}")
        self._reporter.start(name, images, total)

    def step(self, report: Report) -> None:
        """Hands it on with the time that all stages still take."""
        if self._stage in self._outlook.stages and self._total:
            self._outlook.advance(self._stage, report.images / self._total, self._whole(report.images))
            report = replace(report, left=self._outlook.seconds_left())
        self._reporter.step(report)

    def _whole(self, images: int) -> float | None:
        """Seconds that the stage takes from start to end; the first steps are slower than the others."""
        self._steps += 1
        if self._steps == FIRST:
            self._first, self._began = images, time.monotonic()
        if self._steps <= FIRST or images <= self._first:
            return None
        return (time.monotonic() - self._began) / (images - self._first) * self._total

    def close(self) -> None:
        """Ends it."""
        self._reporter.close()

    def another(self) -> "Placed":
        """One for a stage at the same time, with the same outlook."""
        return Placed(self._reporter.another(), self._outlook, self._say, self._where)
