"""Tensors of a foreign layout <-> ours: which of theirs make which of ours, and how."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Way = Callable[[Tensor], Tensor]
Shape = Sequence[int]


@dataclass(frozen=True)
class Pair:
    """One tensor of ours, and the one of theirs, or the several that ours holds one below the other.

    to_ours, to_theirs: a change of order, each the inverse of the other. Shapes may differ by ones.
    """

    ours: str
    theirs: tuple[str, ...]
    to_ours: Way | None = None
    to_theirs: Way | None = None


def layers(ours: str, *theirs: str, to_ours: Way | None = None, to_theirs: Way | None = None) -> list[Pair]:
    """A layer's weight and its bias."""
    return [
        Pair(f"{ours}.{name}", tuple(f"{layer}.{name}" for layer in theirs), to_ours, to_theirs)
        for name in ("weight", "bias")
    ]


def to_ours(pairs: Iterable[Pair], tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Our tensors of these shapes, made of theirs, which must be there."""
    made = {}
    for pair in pairs:
        parts = [tensors[name] for name in pair.theirs]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        made[pair.ours] = (whole if pair.to_ours is None else pair.to_ours(whole)).reshape(tuple(shapes[pair.ours]))
    return made


def to_theirs(pairs: Iterable[Pair], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, made of ours, which must be there; without the ones that only their shapes have."""
    made: dict[str, Tensor] = {}
    for pair in pairs:
        whole = tensors[pair.ours] if pair.to_theirs is None else pair.to_theirs(tensors[pair.ours])
        made |= dict(zip(pair.theirs, whole.chunk(len(pair.theirs)), strict=True))
    return made


def expected(pairs: Iterable[Pair], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of their tensors, up to ones, where these are the shapes of ours."""
    ours = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    return {name: tensor.shape for name, tensor in to_theirs(pairs, ours).items()}
