"""What turns a picture into a grid of patch vectors, (B, 3, S, S) -> (B, width, S/patch, S/patch)."""

import math
from itertools import pairwise

from torch import nn

GROUPS = 8


def patch_stem(patch: int, width: int) -> nn.Module:
    """One convolution over patches that don't overlap (ViT)."""
    return nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)


def conv_stem(patch: int, width: int) -> nn.Module:
    """Stride-2 convolutions with group norm and SiLU, then a 1 × 1 convolution (Xiao et al. 2021, section 4).

    patch: a power of two, 2 or more. Channels double at each step and end at about `width`.
    """
    steps = int(math.log2(patch))
    channels = [3, *(_rounded(width / 2 ** (steps - 1 - step)) for step in range(steps))]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False),
            nn.GroupNorm(GROUPS, after),
            nn.SiLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], width, kernel_size=1))


def _rounded(channels: float) -> int:
    return max(1, round(channels / GROUPS)) * GROUPS
