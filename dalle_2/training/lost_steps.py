"""Steps whose loss or gradient was not finite: they change nothing, so that a run of many has learned little."""

import warnings
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from dalle_2.errors import Dalle2Error

AT_THE_END = 3  # in a row: what it learned before has led nowhere
SHARE = 0.1  # of all steps


@runtime_checkable
class Counted(Protocol):
    """What a run says of its steps: all, those lost, those lost in a row by now, and what they have led to."""

    name: str
    steps: int
    lost: int
    skipped: int

    @property
    def best_model(self) -> nn.Module: ...


def mention_lost(run: Counted, before: int) -> None:
    """Warns whoever called a run's method of the steps that it lost since there were `before` of them."""
    if run.lost > before:
        warnings.warn(f"{_counted(run)}: a lower learning rate, or fp32, loses fewer", stacklevel=3)


def check_learned(run: Counted, folder: Path) -> None:
    """Raises Dalle2Error for a run that came to its end without having learned what it should.

    So it is if its last steps were lost, or more than a tenth of all, or if its weights are not finite.
    """
    if run.skipped >= min(AT_THE_END, run.steps) > 0 or run.lost > SHARE * run.steps:
        problem = f"{_counted(run)}, the last {run.skipped} in a row" if run.skipped else _counted(run)
    elif not all(bool(weight.isfinite().all()) for weight in run.best_model.parameters()):
        problem = f"the weights of {run.name} are not finite any more"
    else:
        return
    raise Dalle2Error(
        f"{problem}: it is not done; delete {folder} and begin it anew with a lower {run.name}.run.lr, or with "
        f"{run.name}.run.dtype=fp32"
    )


def _counted(run: Counted) -> str:
    return f"{max(run.lost, run.skipped)} of {run.steps} steps of {run.name} were not finite and changed nothing"
