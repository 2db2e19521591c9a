"""An optimiser as a saved state has it: checked first, so that a state that doesn't fit changes nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle_2.errors import CheckpointError
from dalle_2.training.muon import Muon

ADAM = ("step", "exp_avg", "exp_avg_sq")
MOMENTS = ("exp_avg", "exp_avg_sq", "average")


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
    if not all(isinstance(value, Tensor) for value in moved) or [value.shape for value in moved] != [
        value.shape for value in beside
    ]:
        raise CheckpointError(
            f"the optimiser's state in {folder} doesn't fit this one: it moved {len(moved)} parameters beside the "
            f"model's, this one moves {len(beside)}; make it of the same parameters and groups before resume()"
        )
    before, rates = optimizer.state_dict(), [group["lr"] for group in optimizer.param_groups]
    needed = tuple(optimizer.defaults)  # to which loading adds
    try:
        optimizer.load_state_dict(state["optimizer"])
        lacking = [name for name in needed for group in optimizer.param_groups if name not in group]
        odd = _odd(optimizer)
    except Exception as error:  # entries that are none of an optimiser's can end in any
        optimizer.load_state_dict(before)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"the optimiser's state in {folder} doesn't fit this one: {reason}") from None
    if odd is not None:
        optimizer.load_state_dict(before)
        raise CheckpointError(
            f"the optimiser's state in {folder} doesn't fit this one: {odd}; choose another folder, or delete the state"
        )
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


def load_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, Any], folder: Path) -> None:
    """Takes over the scale of a run in fp16. Raises CheckpointError for numbers that are no scaler's."""
    own = scaler.state_dict()
    wrong = [name for name in own if not isinstance(state.get(name), int | float)]
    if wrong:
        raise CheckpointError(f"the scale in the state in {folder} is damaged: its {wrong[0]} is no number")
    scaler.load_state_dict(dict(state))


def _odd(optimizer: torch.optim.Optimizer) -> str | None:
    """What is odd about what an optimiser has taken over; of other optimisers nobody knows the averages."""
    for name, value in optimizer.defaults.items():
        taken = [group.get(name, value) for group in optimizer.param_groups]
        if isinstance(value, int | float) and not all(isinstance(one, int | float | Tensor) for one in taken):
            return f"its {name!r} is no number"
    if not isinstance(optimizer, Muon | torch.optim.Adam | torch.optim.AdamW):
        return None
    for parameter, entry in optimizer.state.items():
        if entry.keys() & {*ADAM} and (missing := [name for name in ADAM if name not in entry]):
            return f"it has no {missing[0]!r} for a parameter"
        for name in {*MOMENTS} & entry.keys():
            if not isinstance(entry[name], Tensor) or entry[name].shape != parameter.shape:
                return f"its {name!r} has another shape than its parameter"
    return None


def _check_kind(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], folder: Path) -> None:
    wrote, own = state.get("optimizer_type"), type(optimizer).__name__
    if wrote not in (None, own):
        raise CheckpointError(
            f"the optimiser's state in {folder} was written by {wrote}, and this trainer has {own}: "
            f"give it {wrote}, or choose another folder"
        )
