"""Large pictures in overlapping tiles: each call of the network sees a few of them, and their guesses are blended.

What is blended at every step is x_0, and the step that follows from it is one for the whole picture. So the tiles never
drift apart, as pictures would that are sampled tile by tile and joined at the end.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoised
from dalle_2.sampling.guidance import Condition, ConditionalDenoiser

SHARE = 8  # of a tile's side, that overlaps unless said otherwise


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut: tiles of `tile` pixels a side, neighbours sharing at least `overlap` of them.

    overlap: by default an eighth of `tile`, if that leaves a way forward. grid: tiles begin at its multiples, and the
    side is one. at_once: how many tiles one call of the network sees.

    Raises UsageError for a tile off the grid, and for an overlap that leaves none.
    """

    tile: int
    overlap: int | None = None
    grid: int = 1
    at_once: int = 1

    def __post_init__(self) -> None:
        if self.tile < 1 or self.tile % self.grid:
            raise UsageError(f"a tile must be a multiple of {self.grid} px here, got {self.tile}: {self._near()}")
        if not 0 <= self.shared <= self.tile - self.grid:
            most = self.tile - self.grid
            raise UsageError(f"tiles of {self.tile} px may overlap by 0 to {most} px here, got {self.overlap}")
        if self.at_once < 1:
            raise UsageError(f"at_once must be at least 1 tile, got {self.at_once}")

    @property
    def shared(self) -> int:
        """The pixels that neighbours share at least."""
        return min(self.tile // SHARE, self.tile - self.grid) if self.overlap is None else self.overlap

    def _near(self) -> str:
        below = max(1, self.tile // self.grid) * self.grid
        return f"say {below} or {below + self.grid}" if below < self.tile else f"say {below}"


class Span(NamedTuple):
    """A tile along one axis: its first pixel, and what each of its pixels counts in the blend."""

    start: int
    weights: Float64[Tensor, "n"]

    @property
    def pixels(self) -> slice:
        """Its part of the axis."""
        return slice(self.start, self.start + len(self.weights))


def spans(length: int, tiling: Tiling) -> list[Span]:
    """The tiles of an axis of `length` pixels; wherever one looks, the weights of all tiles sum to 1.

    Weights rise as a raised cosine over the middle half of the overlap. The outer quarter of it counts nothing: there a
    network misses the neighbours that it would have in the whole picture. An axis shorter than a tile is one tile.
    """
    starts = _starts(length, tiling)
    size = min(tiling.tile, length)
    windows = [_window(size, tiling.shared, start > 0, start + size < length) for start in starts]
    total = torch.zeros(length, dtype=torch.float64, device="cpu")
    for start, window in zip(starts, windows, strict=True):
        total[start : start + size] += window
    return [
        Span(start, window / total[start : start + size]) for start, window in zip(starts, windows, strict=True)
    ]


def _starts(length: int, tiling: Tiling) -> list[int]:
    """Steps as long as overlap and grid allow; the last tile ends with the picture."""
    if length <= tiling.tile:
        return [0]
    stride = (tiling.tile - tiling.shared) // tiling.grid * tiling.grid
    last = length - tiling.tile
    return [*range(0, last, stride), last]


def _window(size: int, overlap: int, rises: bool, falls: bool) -> Float64[Tensor, "{size}"]:
    """Before normalising; the borders of the picture have no neighbours to fade into."""
    if overlap == 0:
        return torch.ones(size, dtype=torch.float64, device="cpu")
    inside = torch.arange(size, dtype=torch.float64, device="cpu") + 0.5
    ramp = 0.5 - 0.5 * torch.cos(math.pi * ((inside - overlap / 4) / (overlap / 2)).clamp(0, 1))
    one = torch.ones_like(ramp)
    return (ramp if rises else one) * (ramp.flip(0) if falls else one)


def tiled(network: ConditionalDenoiser, tiling: Tiling, *, pictures: Collection[str] = ()) -> ConditionalDenoiser:
    """The same network, shown tiles of x_t and of those conditions that `pictures` names; its guesses are blended.

    Those conditions have x_t's height and width, (B, C, H, W). The others reach every tile as they are. Where one tile
    holds the whole picture this is the network itself. It is equal to the network on the whole picture where a guess
    depends on nothing that is more than a quarter of the overlap away.
    """

    def denoise(x_t: Tensor, t: Tensor, condition: Condition) -> Denoised:
        height, width = x_t.shape[-2:]
        if max(height, width) <= tiling.tile:
            return network(x_t, t, condition)
        tiles = [
            _Tile(row, y, x)
            for row, y, x in product(range(len(x_t)), spans(height, tiling), spans(width, tiling))
        ]
        blend: Tensor | None = None
        for first in range(0, len(tiles), tiling.at_once):
            some = tiles[first : first + tiling.at_once]
            answers = _answers(network, some, x_t, t, condition, pictures)
            if blend is None:
                blend = answers.new_zeros(len(x_t), answers.shape[1], height, width)
            for tile, answer in zip(some, answers, strict=True):
                blend[tile.place] += tile.weights(answer) * answer
        assert blend is not None
        channels = x_t.shape[1]
        return Denoised(blend[:, :channels], blend[:, channels:] if blend.shape[1] > channels else None)

    return denoise


class _Tile(NamedTuple):
    """One tile of one picture of the batch."""

    row: int
    y: Span
    x: Span

    @property
    def place(self) -> tuple[int, slice, slice, slice]:
        return self.row, slice(None), self.y.pixels, self.x.pixels

    def weights(self, like: Tensor) -> Tensor:
        return torch.outer(self.y.weights, self.x.weights).to(like.dtype).to(like.device)


def _answers(
    network: ConditionalDenoiser,
    tiles: list[_Tile],
    x_t: Float[Tensor, "b c h w"],
    t: Tensor,
    condition: Condition,
    pictures: Collection[str],
) -> Float[Tensor, "k c2 n m"]:
    """What the network says of some tiles: x_0 and, where it learned that, the variance below it."""
    rows = torch.tensor([tile.row for tile in tiles], dtype=torch.long, device=x_t.device)

    def cut(values: Tensor) -> Tensor:
        return torch.stack([values[tile.place] for tile in tiles])

    part = {name: cut(values) if name in pictures else values[rows] for name, values in condition.items()}
    answer = network(cut(x_t), t[rows], part)
    return answer.x_0 if answer.variance is None else torch.cat([answer.x_0, answer.variance], dim=1)
