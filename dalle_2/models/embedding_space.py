"""What the numbers of a CLIP embedding mean: raw or of unit length, and how they are scaled for a network.

Two parts fit together only if they speak of the same space, so every checkpoint carries its own.
"""

from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dalle_2 import bounds
from dalle_2.config import Settings
from dalle_2.errors import UsageError


class EmbeddingSpace(Settings):
    """An embedding space of `dim` numbers.

    normalised: embeddings have unit length. basis: orthonormal rows of `dim` numbers, the directions that a network
    sees; all others are left out (the paper keeps 319 of CLIP's 1024, section 2.2). mean, std: whitening per
    direction, both or neither. scale: factor after whitening, so that a network sees values of about unit variance.
    """

    dim: int = Field(512, ge=1, le=bounds.WIDTH)
    normalised: bool = True
    basis: tuple[tuple[float, ...], ...] | None = Field(None, repr=False, max_length=bounds.WIDTH)
    mean: tuple[float, ...] | None = Field(None, max_length=bounds.WIDTH)
    std: tuple[float, ...] | None = Field(None, max_length=bounds.WIDTH)
    scale: float = Field(1.0, gt=0, le=bounds.FACTOR)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("whitening needs mean and std: give both or neither")
        for row in self.basis or ():
            if len(row) != self.dim:
                raise ValueError(f"a direction of {len(row)} numbers doesn't fit embeddings of {self.dim}")
        if self.basis is not None and not 1 <= len(self.basis) <= self.dim:
            raise ValueError(f"basis needs 1 to {self.dim} directions, got {len(self.basis)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.width:
                what = "an embedding" if self.basis is None else "the basis"
                raise ValueError(
                    f"{name} has {len(values)} numbers, {what} has {self.width}: give one a dimension"
                )
        if self.std is not None and min(self.std) <= 0:
            where = self.std.index(min(self.std))
            raise ValueError(f"std must be above 0 everywhere, got {self.std[where]} in dimension {where}")
        return self

    @property
    def width(self) -> int:
        """How many numbers a network sees."""
        return self.dim if self.basis is None else len(self.basis)

    def to_model(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b {self.width}"]:
        """CLIP's embedding -> what a network sees: its share in the basis, whitened and scaled.

        That share is brought to unit length where embeddings have it: so an embedding and what is left of it after
        the other directions were taken away look the same to a network. In float32 at least, in any surroundings.
        """
        with _exactly(z):
            z = _wide(z)
            if self._basis is not None:
                z = self.finish(z @ self._basis.to(z).T)
            if self.mean is None or self.std is None:
                return z * self.scale
            return (z - z.new_tensor(self.mean)) / z.new_tensor(self.std) * self.scale

    def from_model(self, z: Float[Tensor, "*b {self.width}"]) -> Float[Tensor, "*b d"]:
        """The inverse of `to_model`, inside the basis. It does not restore unit length: see `finish`."""
        with _exactly(z):
            z = _wide(z) / self.scale
            if self.mean is not None and self.std is not None:
                z = z * z.new_tensor(self.std) + z.new_tensor(self.mean)
            return z if self._basis is None else z @ self._basis.to(z)

    def finish(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """A raw or predicted embedding as a member of this space: of unit length if the space says so."""
        return torch.nn.functional.normalize(z, dim=-1) if self.normalised else z

    @cached_property
    def _basis(self) -> Float[Tensor, "{self.width} d"] | None:
        with torch.inference_mode(False):  # it is kept, and others may learn through it
            return None if self.basis is None else torch.tensor(self.basis, dtype=torch.float64, device="cpu")


def _exactly(z: Tensor) -> torch.autocast:
    """No autocast: a network may compute in fewer digits, but what its numbers mean is not its affair."""
    return torch.autocast(z.device.type, enabled=False)


def _wide(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


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
