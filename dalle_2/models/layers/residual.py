"""The residual block of ADM, and the resampling between levels."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.conv3x3 import Conv3x3
from dalle_2.models.layers.init import zeroed
from dalle_2.models.layers.strips import Lines, add, convolved, pays


def group_norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    """By default groups of at least eight channels, at most 32 of them (ADM uses 32 groups throughout)."""
    if groups is not None:
        return nn.GroupNorm(groups, channels)
    groups = max(1, min(32, channels // 8))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


Resample = Literal["down", "up"]


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, twice; the embedding scales and shifts the second norm, or is added before it.

    After Dhariwal & Nichol 2021, section 3 ("adaptive group normalization"). resample: halves or doubles height and
    width inside the block, before its first convolution and beside it (ADM's "BigGAN residual blocks").
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        *,
        scale_shift: bool = True,
        dropout: float = 0.0,
        resample: Resample | None = None,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = RESAMPLE[resample] if resample else None
        self.norm_in = group_norm(channels, groups)
        self.conv_in = Conv3x3(channels, out_channels)
        self.embed = nn.Linear(embedding, out_channels * (2 if scale_shift else 1))
        self.norm_out = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(Conv3x3(out_channels, out_channels))
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b c h w"] | list[Float[Tensor, "b _ h w"]], embedding: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b c2 h2 w2"]:
        """x: one map, or a list of some whose channels are joined; the list is emptied, so that they can go.
        `embedding` has already passed through SiLU: one activation serves every block."""
        maps = x if isinstance(x, list) else [x]
        lines = Lines(maps, doubled=self.resample is doubled)
        if self._takes_strips() and pays(lines):
            made = self._in_strips(lines, embedding)
            maps.clear()
            return made
        x = torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]
        maps.clear()
        resample = self.resample or _as_it_is
        h = self.conv_in(resample(silu(self.norm_in(x))))
        shift = self.embed(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        else:
            h = self.norm_out(added(h, shift))
        return added(self.conv_out(self.dropout(silu(h))), self.skip(resample(x)))

    def _takes_strips(self) -> bool:
        """Whether it is as it was built, and drops nothing; halving is for whole maps."""
        as_built = type(self.conv_in) is type(self.conv_out) is Conv3x3
        return as_built and self.resample is not halved and not self.training

    def _in_strips(self, lines: Lines, embedding: Tensor) -> Tensor:
        """The same without maps of full size in between."""
        h = convolved(lines, self.norm_in, self.conv_in)
        shift = self.embed(embedding)
        scale, shift = shift.chunk(2, dim=1) if self.scale_shift else (None, shift)
        made = convolved(Lines([h]), self.norm_out, self.conv_out, scale, shift)
        add(made, lines, self.skip)
        return made


def added(fresh: Float[Tensor, "b c h w"], other: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b c h w"]:
    """A sum, without gradients in the place of what nobody else looks at."""
    if torch.is_grad_enabled() or fresh.dtype != other.dtype:
        return fresh + other
    return fresh.add_(other)


def silu(fresh: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """SiLU of what nobody else looks at: without gradients in its place, which spares a map of full size."""
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


def halved(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """The mean of each square of two pixels a side."""
    return F.avg_pool2d(x, 2)


def doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Every pixel twice in both directions."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


RESAMPLE: dict[Resample, Callable[[Tensor], Tensor]] = {"down": halved, "up": doubled}


def _as_it_is(x: Tensor) -> Tensor:
    return x


class Downsample(nn.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width by repetition and a convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return self.conv(doubled(x))
