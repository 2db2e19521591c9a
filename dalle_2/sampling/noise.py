"""Noise that belongs to a picture and not to a batch."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.scalars import plain_numbers


class PictureNoise:
    """One CPU generator a picture, keyed by (seed, stage).

    Rows are drawn one by one, always in float32 on the CPU, and then moved: a picture's noise depends neither
    on its neighbours in the batch nor on device or dtype. The same seed gives independent streams to
    different stages.

    seeds: one a picture, any whole number. stage: the name of the stage, such as "prior".
    """

    @plain_numbers
    def __init__(self, seeds: Sequence[int], stage: str) -> None:
        self.generators = [torch.Generator().manual_seed(_key(seed, stage)) for seed in seeds]

    @classmethod
    def from_generators(cls, generators: Iterable[torch.Generator]) -> "PictureNoise":
        """The same over generators of the caller's own, one a picture."""
        noise = cls((), "")
        noise.generators = list(generators)
        return noise

    @classmethod
    def fresh(cls, pictures: int, stage: str) -> "PictureNoise":
        """New seeds from PyTorch's global generator every time; torch.manual_seed makes them repeat."""
        return cls(torch.randint(2**62, (pictures,), device="cpu").tolist(), stage)

    def __len__(self) -> int:
        return len(self.generators)

    def __call__(self, shape: Sequence[int]) -> Float[Tensor, "..."]:
        """`normal` with its defaults: the form in which samplers ask for noise."""
        return self.normal(shape)

    def normal(
        self, shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "..."]:
        """Standard normal noise of `shape`, (B, ...), a row from each picture's own stream.

        Raises UsageError where B is not the number of pictures.
        """
        if len(shape) == 0 or shape[0] != len(self):
            raise UsageError(
                f"noise of shape {tuple(shape)} was asked for, with {len(self)} seeds; give one a row"
            )
        rows = [
            normal(tuple(shape[1:]), generator)
            for generator in self.generators
        ]
        return torch.stack([row.to(device=device, dtype=dtype) for row in rows])


def normal(shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Standard normal noise, float32 on the generator's device, whatever PyTorch's own defaults are."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device=generator.device)


def uniform(shape: Sequence[int] | int, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Numbers in [0, 1), as `normal` gives them. shape: () for a single one."""
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    return torch.rand(size, generator=generator, dtype=torch.float32, device=generator.device)


def whole_numbers(end: int, shape: Sequence[int], generator: torch.Generator) -> Int[Tensor, "..."]:
    """Whole numbers from 0 to `end` - 1, each as likely, on the generator's device."""
    return torch.randint(end, tuple(shape), generator=generator, device=generator.device)


def _key(seed: int, stage: str) -> int:
    """64 bits out of (seed, stage), the same on every machine; neighbouring seeds end far apart."""
    digest = hashlib.sha256(f"{stage}\0{int(seed)}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
