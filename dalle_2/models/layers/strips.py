"""Maps that no cache holds, a strip of rows at a time: norm, SiLU and convolution of one strip before the next.

Between them no map of full size is made, and what is joined or enlarged before the norm never exists as a whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.conv3x3 import Conv3x3

LEAST = 2**24  # numbers of a map from which on it pays
ROWS = 8  # of a strip


@dataclass(frozen=True, eq=False)
class Lines:
    """Maps with their channels joined and, if `doubled`, every pixel twice in both directions."""

    maps: Sequence[Float[Tensor, "b _ h w"]]
    doubled: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        times = 2 if self.doubled else 1
        return times * self.maps[0].shape[2], times * self.maps[0].shape[3]

    @property
    def numbers(self) -> int:
        """How many there are in all."""
        return sum(x.numel() for x in self.maps) * (4 if self.doubled else 1)

    def rows(self, first: int, end: int, change: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, "b c n w"]:
        """Some rows, changed number by number; those beyond the border are zero."""
        height = self.size[0]
        top, bottom = max(first, 0), min(end, height)
        times = 2 if self.doubled else 1
        pieces = [x[:, :, top // times : -(-bottom // times)] for x in self.maps]
        x = torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]
        x = x if change is None else change(x)
        if self.doubled:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, top % 2 : top % 2 + bottom - top]
        return F.pad(x, (0, 0, top - first, end - bottom)) if (top, bottom) != (first, end) else x


def pays(lines: Lines) -> bool:
    """Whether strips gain something: for large maps in float32 on a CPU, where no gradients are wanted."""
    x = lines.maps[0]
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    even = all(side % 2 == 0 for side in lines.size)
    return plain and even and lines.numbers >= LEAST and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def convolved(
    lines: Lines,
    norm: nn.GroupNorm,
    conv: Conv3x3,
    scale: Float[Tensor, "b c"] | None = None,
    shift: Float[Tensor, "b c"] | None = None,
) -> Float[Tensor, "b c2 h w"]:
    """The convolution of SiLU of the norm. scale, shift: of the normed maps; a shift alone is added before the norm."""
    factor, rest = _as_one(lines, norm, scale, shift)
    (height, width), batch = lines.size, len(lines.maps[0])
    made = factor.new_empty(batch, height, width, conv.out_channels).permute(0, 3, 1, 2)
    convolve = conv.inside(height, width)

    def change(x: Tensor) -> Tensor:
        return F.silu(torch.addcmul(rest, x, factor), inplace=True)

    for top in range(0, height, ROWS):
        end = min(top + ROWS, height)
        made[:, :, top:end] = convolve(lines.rows(top - 1, end + 1, change))
    return made


def add(made: Float[Tensor, "b c h w"], lines: Lines, through: nn.Module) -> None:
    """Adds to a map what a layer that looks at single pixels makes of lines."""
    height = lines.size[0]
    for top in range(0, height, ROWS):
        end = min(top + ROWS, height)
        made[:, :, top:end] += through(lines.rows(top, end))


def _as_one(
    lines: Lines, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None
) -> tuple[Float[Tensor, "b c 1 1"], Float[Tensor, "b c 1 1"]]:
    """Factor and summand by which the norm, scaled and shifted, changes each channel."""
    mean, square = (torch.cat(parts, dim=1) for parts in zip(*map(_moments, lines.maps), strict=True))
    before = shift.double() if shift is not None and scale is None else torch.zeros_like(mean)
    mean, square = mean + before, square + 2 * mean * before + before**2
    middle, middle_square = (_of_groups(x, norm.num_groups) for x in (mean, square))
    variance = (middle_square - middle**2).clamp(min=0)
    factor = norm.weight * (variance + norm.eps).rsqrt()
    rest = norm.bias + (before - middle) * factor
    if scale is not None and shift is not None:
        factor, rest = factor * (1 + scale), rest * (1 + scale) + shift
    return factor.float()[:, :, None, None], rest.float()[:, :, None, None]


def _of_groups(x: Float[Tensor, "b c"], groups: int) -> Float[Tensor, "b c"]:
    """The mean of a channel's group, for each channel."""
    return x.view(len(x), groups, -1).mean(2, keepdim=True).expand(-1, -1, x.shape[1] // groups).flatten(1)


def _moments(x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
    """The mean of each channel and of its square, in float64."""
    sums, squares = x.new_zeros(x.shape[:2], dtype=torch.float64), x.new_zeros(x.shape[:2], dtype=torch.float64)
    for top in range(0, x.shape[2], ROWS):
        strip = x[:, :, top : top + ROWS]
        sums += strip.sum((2, 3))
        squares += strip.square().sum((2, 3))
    numbers = x.shape[2] * x.shape[3]
    return sums / numbers, squares / numbers
