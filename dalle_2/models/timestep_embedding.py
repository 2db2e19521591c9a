"""Timesteps as vectors: a fixed sinusoid, then a small learned network."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dalle_2.errors import UsageError

MAX_PERIOD = 10_000.0


def sinusoid(t: Float[Tensor, "b"], width: int) -> Float[Tensor, "b width"]:
    """Cosines then sines of t at geometrically falling frequencies (Vaswani et al. 2017, as used by ADM)."""
    half = width // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedder(nn.Module):
    """Maps timesteps to vectors: a fixed `sinusoid`-wide encoding, Linear, SiLU, Linear.

    Shared by prior, decoder and upsamplers, each of which owns one. Timesteps may be real-valued, as some
    solvers stop between two rows of the noise table. They are embedded in float32 whatever the network computes in: in
    bfloat16 neighbouring timesteps would look the same.
    """

    in_float32 = True

    def __init__(self, dim: int = 512, *, sinusoid: int = 128) -> None:
        super().__init__()
        if sinusoid < 2 or sinusoid % 2:
            raise UsageError(f"the sinusoid's width must be even and at least 2, got {sinusoid}")
        self.dim, self.width = dim, sinusoid
        self.mlp = nn.Sequential(nn.Linear(sinusoid, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(
        self, t: Float[Tensor, "b"] | Int[Tensor, "b"] | Float[Tensor, "b 1"] | Int[Tensor, "b 1"]
    ) -> Float[Tensor, "b {self.dim}"]:
        """Timesteps `(b,)` or `(b, 1)` to vectors `(b, dim)`."""
        angles = sinusoid(t.reshape(t.shape[0]).float(), self.width)
        with torch.autocast(t.device.type, enabled=False):
            return self.mlp(angles.to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]
