"""Weights of another layout into a module of ours: checked by their own names, and taken over without a copy."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle_2.errors import CheckpointError
from dalle_2.weights.checkpoint import listed
from dalle_2.weights.layout import Pair, expected, to_ours


def fill(
    module: nn.Module,
    pairs: Iterable[Pair],
    tensors: Mapping[str, Tensor],
    source: str | Path,
    *,
    further: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Puts foreign tensors into a module, which may lie on the meta device.

    further: tensors under our names that are not in the file. dtype: of the module's weights after it.

    Raises CheckpointError with one list of all tensors that are missing, not known, not numbers or mis-shaped, by the
    names that they have in `source`.
    """
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    used = [pair for pair in pairs if pair.ours in shapes]
    wanted = expected(used, shapes)
    problems = [
        *listed("missing", [name for name in wanted if name not in tensors]),
        *listed("not known here", [name for name in tensors if name not in wanted]),
        *listed("of another shape", _misshaped(wanted, tensors)),
        *listed("no floating-point numbers", [name for name in wanted if _is_whole(tensors.get(name))]),
    ]
    if problems:
        raise CheckpointError(f"the tensors of {source} don't fit: {'; '.join(problems)}")
    made = to_ours(used, tensors) | dict(further or {})
    module.load_state_dict({name: value.to(dtype) for name, value in made.items()}, assign=True)


def _misshaped(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]


def _is_whole(tensor: Tensor | None) -> bool:
    return tensor is not None and not tensor.is_floating_point()
