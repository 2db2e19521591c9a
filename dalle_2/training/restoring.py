"""An optimiser as a saved state has it: checked first, so that a state that doesn't fit changes nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle_2.errors import CheckpointError


def apart(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimiser moves beside the model's parameters, as those of a group that was added later."""
    own = {id(parameter) for parameter in model.parameters()}
    return [p.detach() for group in optimizer.param_groups for p in group["params"] if id(p) not in own]


def load_optimiser(
    optimizer: torch.optim.Optimizer, beside: Sequence[Tensor], state: Mapping[str, Any], folder: Path
) -> None:
    """Takes over averages, groups, the caller's learning rates, and the parameters `beside` the model's, see `apart`.

    Raises CheckpointError for the state of another optimiser, or of one with other parameters. Earlier releases saved
    rates as they were used in the last step; of theirs the optimiser keeps its own.
    """
    _check_kind(optimizer, state, folder)
    moved = state.get("apart", beside)
    if [value.shape for value in moved] != [value.shape for value in beside]:
        raise CheckpointError(
            f"the optimiser's state in {folder} doesn't fit this one: it moved {len(moved)} parameters beside the "
            f"model's, this one moves {len(beside)}; make it of the same parameters and groups before resume()"
        )
    before, rates = optimizer.state_dict(), [group["lr"] for group in optimizer.param_groups]
    needed = tuple(optimizer.defaults)  # to which loading adds
    try:
        optimizer.load_state_dict(state["optimizer"])
        lacking = [name for name in needed for group in optimizer.param_groups if name not in group]
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"the optimiser's state in {folder} doesn't fit this one: {error}") from None
    if lacking:
        optimizer.load_state_dict(before)
        raise CheckpointError(
            f"the optimiser's state in {folder} doesn't fit this {type(optimizer).__name__}: it says nothing of "
            f"{lacking[0]}; go on with the optimiser that wrote it, or choose another folder"
        )
    for parameter, value in zip(beside, moved, strict=True):
        parameter.copy_(value)
    if "run" not in state:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _check_kind(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], folder: Path) -> None:
    wrote, own = state.get("optimizer_type"), type(optimizer).__name__
    if wrote not in (None, own):
        raise CheckpointError(
            f"the optimiser's state in {folder} was written by {wrote}, and this trainer has {own}: "
            f"give it {wrote}, or choose another folder"
        )
