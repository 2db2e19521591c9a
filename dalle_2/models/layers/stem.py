"""What turns a picture into a grid of patch vectors, (B, 3, S, S) -> (B, width, S/patch, S/patch)."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 8


def patch_stem(patch: int, width: int) -> nn.Module:
    """One convolution over patches that don't overlap (ViT)."""
    return nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)


class Refine(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))): looks at the neighbours without leaving the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b w h v"]) -> Float[Tensor, "b w h v"]:
        return x + self.layers(x)


def conv_stem(patch: int, width: int, blocks: int = 0) -> nn.Module:
    """Stride-2 convolutions with group norm and SiLU, then a 1 × 1 convolution (Xiao et al. 2021, section 4).

    patch: a power of two, 2 or more. Channels double at each step and end at about `width`.
    blocks: residual blocks on the last grid (ADM's, without time), which tell shapes apart sooner than attention does.
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
    layers.append(nn.Conv2d(channels[-1], width, kernel_size=1))
    return nn.Sequential(*layers, *(Refine(width) for _ in range(blocks)))


def _rounded(channels: float) -> int:
    return max(1, round(channels / GROUPS)) * GROUPS
