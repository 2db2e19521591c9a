"""Weights in a narrower dtype, as far as it holds them: half precision reaches from 6e-8 to 65,504."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dalle_2.weights.listing import listed


def narrowed(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, path: str | Path, exact: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors on the CPU, floating-point ones in `dtype`, None for their own; `exact` names those that keep it.

    A tensor with a number that would become infinite, or whose every number would become zero, is kept in float32, or
    in its own dtype where that doesn't hold it either. Warns of those, and of numbers that aren't finite as they came;
    `path` is where they are written to.
    """
    made = {name: _plain(tensor, None if name in exact else dtype) for name, tensor in tensors.items()}
    wider = [name for name, value in made.items() if dtype and name not in exact and _is_wider(value, dtype)]
    _warn(f"{path} keeps weights in float32 that {_named(dtype)} doesn't hold", wider)
    _warn(f"{path} has weights that are not finite, as they came", [n for n, x in made.items() if not _finite(x)])
    return made


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is None or not tensor.is_floating_point():
        return tensor.contiguous()
    tried = (tensor.to(wanted) for wanted in (dtype, torch.float32))
    return next((value for value in tried if _holds(value, tensor)), tensor).contiguous()


def _holds(narrow: Tensor, wide: Tensor) -> bool:
    if not _finite(narrow) and bool((_counted(wide).isfinite() & ~_counted(narrow).isfinite()).any()):
        return False
    return bool(_counted(narrow).any()) or not bool(_counted(wide).any())


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(_counted(tensor).isfinite().all())


def _counted(tensor: Tensor) -> Tensor:
    """In a dtype that PyTorch can ask such questions of: not in one of 8 bits."""
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor


def _is_wider(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.dtype != dtype


def _named(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _warn(title: str, names: list[str]) -> None:
    for said in listed(title, names, most=5):
        warnings.warn(said, stacklevel=4)
