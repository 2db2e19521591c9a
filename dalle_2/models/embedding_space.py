"""What the numbers of a CLIP embedding mean: raw or of unit length, and how they are scaled for a network.

Two parts fit together only if they speak of the same space, so every checkpoint carries its own.
"""

from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dalle_2.config import Settings
from dalle_2.errors import UsageError


class EmbeddingSpace(Settings):
    """An embedding space of `dim` numbers.

    normalised: embeddings have unit length. mean, std: whitening per dimension, both or neither.
    scale: factor after whitening, so that a network sees values of about unit variance.
    """

    dim: int = Field(512, ge=1)
    normalised: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("whitening needs mean and std: give both or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.dim:
                raise ValueError(
                    f"{name} has {len(values)} numbers, an embedding has {self.dim}: give one a dimension"
                )
        if self.std is not None and min(self.std) <= 0:
            where = self.std.index(min(self.std))
            raise ValueError(f"std must be above 0 everywhere, got {self.std[where]} in dimension {where}")
        return self

    def to_model(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """CLIP's embedding -> what a network sees: (z - mean) / std · scale."""
        if self.mean is None or self.std is None:
            return z * self.scale
        return (z - z.new_tensor(self.mean)) / z.new_tensor(self.std) * self.scale

    def from_model(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The inverse of `to_model`. It does not restore unit length: see `finish`."""
        z = z / self.scale
        if self.mean is None or self.std is None:
            return z
        return z * z.new_tensor(self.std) + z.new_tensor(self.mean)

    def finish(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """A raw or predicted embedding as a member of this space: of unit length if the space says so."""
        return torch.nn.functional.normalize(z, dim=-1) if self.normalised else z


def check_same(a: EmbeddingSpace, b: EmbeddingSpace, names: tuple[str, str]) -> None:
    """Raises UsageError naming both parts if they don't speak of the same embeddings.

    Whitening and scale are each network's own affair; size and length must agree.
    """
    if (a.dim, a.normalised) != (b.dim, b.normalised):
        raise UsageError(
            f"{names[0]} works with {_words(a)} and {names[1]} with {_words(b)}: "
            "use parts that were made for the same CLIP"
        )


def _words(space: EmbeddingSpace) -> str:
    return f"{'L2-normalised' if space.normalised else 'raw'} embeddings of {space.dim} numbers"
