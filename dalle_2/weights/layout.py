"""Tensors of a foreign layout <-> ours: which of theirs make which of ours, and how."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Way = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """One tensor of ours, and the one of theirs, or the several that ours holds one below the other.

    to_ours, to_theirs: a change of order, each the inverse of the other. ones: how many sides of one theirs begins with
    that ours does without.
    """

    ours: str
    theirs: tuple[str, ...]
    to_ours: Way | None = None
    to_theirs: Way | None = None
    ones: int = 0

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Ours, of theirs in their order."""
        whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        whole = whole.flatten(0, self.ones) if self.ones else whole
        return whole if self.to_ours is None else self.to_ours(whole)

    def split(self, whole: Tensor) -> dict[str, Tensor]:
        """Theirs by name, of ours."""
        whole = whole if self.to_theirs is None else self.to_theirs(whole)
        parts = whole.chunk(len(self.theirs)) if len(self.theirs) > 1 else (whole,)
        return {name: part[(None,) * self.ones] for name, part in zip(self.theirs, parts, strict=True)}


def layers(ours: str, *theirs: str, to_ours: Way | None = None, to_theirs: Way | None = None) -> list[Pair]:
    """A layer's weight and its bias."""
    return [
        Pair(f"{ours}.{name}", tuple(f"{layer}.{name}" for layer in theirs), to_ours, to_theirs)
        for name in ("weight", "bias")
    ]


def to_theirs(pairs: Iterable[Pair], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, made of ours; those that ours lacks are left out."""
    made: dict[str, Tensor] = {}
    for pair in pairs:
        if pair.ours in tensors:
            made |= pair.split(tensors[pair.ours])
    return made


def expected(pairs: Iterable[Pair], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The shapes of their tensors where these are the shapes of ours."""
    ours = {name: torch.empty(tuple(shape), dtype=torch.float32, device="meta") for name, shape in shapes.items()}
    return {name: tuple(tensor.shape) for name, tensor in to_theirs(pairs, ours).items()}
