"""The caller's learning rates and the trainer's schedule, which multiplies them for a step and leaves them alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def scheduled(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[list[float]]:
    """Inside, every group's rate is its own times `factor`; gives the rates that are used.

    Afterwards a group has what the caller gave it: by hand, or by a scheduler of PyTorch, which then goes on from its
    own rates.
    """
    groups = list(optimizer.param_groups)
    own = [group["lr"] for group in groups]
    try:
        if factor != 1:
            for group, rate in zip(groups, own, strict=True):
                group["lr"] = rate * factor
        yield [float(group["lr"]) for group in groups]
    finally:
        for group, rate in zip(groups, own, strict=True):
            group["lr"] = rate


def reported(rates: list[float]) -> dict[str, float]:
    """The rates of a step by name: `lr`, and `lr_2`, `lr_3` ... of groups that have another than the first."""
    others = {f"lr_{number}": rate for number, rate in enumerate(rates, 1) if rate != rates[0]}
    return {"lr": rates[0], **others} if rates else {}
