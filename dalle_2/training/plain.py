"""Values that a state can hold: those that are read back without running any code."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle_2.errors import UsageError

AS_THEY_ARE = (Tensor, torch.dtype, torch.device)
PLAIN: tuple[type[Any], ...] = (bool, int, float, complex, str, bytes)  # and None; True is an int, too


def plain(value: Any, where: str = "") -> Any:
    """The same value of plain numbers, texts, containers and tensors; numbers of NumPy become Python's.

    where: its name in a message. Raises UsageError naming the entry that is of another kind.
    """
    if value is None or isinstance(value, AS_THEY_ARE):
        return value
    if isinstance(value, np.generic | Enum):
        return plain(value.item() if isinstance(value, np.generic) else value.value, where)
    for kind in PLAIN:
        if isinstance(value, kind):  # of that class, or of one that somebody derived from it
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {plain(name, where): plain(entry, _inside(where, name)) for name, entry in value.items()}
    if isinstance(value, list | tuple | set):
        entries = [plain(entry, _inside(where, index)) for index, entry in enumerate(value)]
        return entries if isinstance(value, list) else set(entries) if isinstance(value, set) else tuple(entries)
    raise UsageError(
        f"{where or 'the state'} is a {type(value).__name__}, which a saved state can't hold: "
        "make it a number, a text or a tensor; the state that was saved before is unchanged"
    )


def _inside(where: str, name: object) -> str:
    return f"{where}[{name!r}]" if where else str(name)
