"""Timesteps as vectors: a fixed sinusoid, then a small learned network."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dalle_2.errors import UsageError
from dalle_2.models.preconditioning import with_level
from dalle_2.sampling.noise_scheduler import NoiseScheduler

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

    noise_scheduler: with one the last two numbers are not learned. They say how much of x_t is data and how much noise,
    sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), so that whoever is handed t_emb can read it, see `preconditioning.py`.
    """

    in_float32 = True

    def __init__(
        self, dim: int = 512, *, sinusoid: int = 128, noise_scheduler: NoiseScheduler | None = None
    ) -> None:
        super().__init__()
        if sinusoid < 2 or sinusoid % 2:
            raise UsageError(f"the sinusoid's width must be even and at least 2, got {sinusoid}")
        if noise_scheduler is not None and dim < 3:
            raise UsageError(f"a t_emb that says how much noise there is needs 3 numbers or more, got {dim}")
        self.dim, self.width, self.noise_scheduler = dim, sinusoid, noise_scheduler
        self.mlp = nn.Sequential(nn.Linear(sinusoid, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(
        self, t: Float[Tensor, "b"] | Int[Tensor, "b"] | Float[Tensor, "b 1"] | Int[Tensor, "b 1"]
    ) -> Float[Tensor, "b {self.dim}"]:
        """Timesteps `(b,)` or `(b, 1)` to vectors `(b, dim)`."""
        t = t.reshape(t.shape[0])
        angles = sinusoid(t.float(), self.width)
        with torch.autocast(t.device.type, enabled=False):
            t_emb = self.mlp(angles.to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]
        return t_emb if self.noise_scheduler is None else with_level(t_emb, self.noise_scheduler.alpha_bar_at(t))
