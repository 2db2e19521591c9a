"""A residual block on vectors that a condition modulates: for what is one vector and no sequence."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.init import zeroed


class ModulatedBlock(nn.Module):
    """x + (1 + gate) · W(a · gelu(b)), where a, b = V((1 + scale) · norm(x) + shift).

    Gate, scale and shift come from the condition. The modulation is DiT's (Peebles and Xie 2023, section 3.2), the
    product of two halves GEGLU's (Shazeer 2020): where a condition decides what a number means, sums alone need far
    wider layers.
    """

    def __init__(self, width: int, ratio: int = 2) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 3 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.halves = nn.Linear(width, 2 * ratio * width)
        self.out = nn.Linear(ratio * width, width)

    def forward(self, x: Float[Tensor, "b w"], condition: Float[Tensor, "b w"]) -> Float[Tensor, "b w"]:
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        a, b = self.halves(torch.addcmul(shift, self.norm(x), 1 + scale)).chunk(2, dim=-1)
        return x + (1 + gate) * self.out(a * F.gelu(b))
