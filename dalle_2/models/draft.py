"""The draft: a picture drawn from an image embedding in one go, which the decoder then works on.

Most of what a decoder must learn is to read its embedding, and that needs no noised picture. A small generator learns
it on ten times as many pictures in the same minutes. Its pictures are blurred where the embedding leaves something
open; the decoder's diffusion settles that (Whang et al. 2022, "Deblurring via stochastic refinement": an initial
predictor).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.config import Settings
from dalle_2.models.diffusion import Batch, require, unit_space
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.layers.init import zeroed
from dalle_2.models.layers.residual import group_norm
from dalle_2.models.precision import MixedPrecision, buildable, in_own_precision, readable
from dalle_2.sampling.noise import normal

COARSEST = 8  # pixels of the picture under a square of the coarsest map


class DraftConfig(Settings):
    """Sizes of the generator. z_noise: as the decoder's, on whitened embeddings in training."""

    image_size: int = Field(default=64, ge=COARSEST, multiple_of=COARSEST, le=bounds.SIDE)
    z_dim: int = Field(default=512, ge=1, le=bounds.WIDTH)
    width: int = Field(default=384, ge=1, le=bounds.WIDTH)
    depth: int = Field(default=3, ge=0, le=bounds.DEPTH)
    channels: int = Field(default=32, ge=4, multiple_of=4, le=bounds.WIDTH)
    z_noise: float = Field(default=0.0, ge=0, le=bounds.FACTOR)
    space: EmbeddingSpace | None = None


class Draft(MixedPrecision):
    """An embedding to a picture: a network on the vector, a coarse map, convolutions on finer and finer maps."""

    kind = "draft"

    @buildable
    def __init__(self, config: DraftConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DraftConfig()
        self.space = config.space or unit_space(config.z_dim)
        self.side, wide, narrow = config.image_size // COARSEST, 2 * config.channels, config.channels // 2
        self.read = nn.Sequential(
            nn.Linear(config.z_dim, config.width),
            *(VectorBlock(config.width) for _ in range(config.depth)),
            nn.LayerNorm(config.width),
            nn.GELU(),
        )
        self.coarse = nn.Linear(config.width, wide * self.side**2)
        self.draw = nn.Sequential(
            ConvBlock(wide),
            nn.Conv2d(wide, 4 * config.channels, 1),
            nn.PixelShuffle(2),
            ConvBlock(config.channels),
            nn.Conv2d(config.channels, 4 * narrow, 1),
            nn.PixelShuffle(2),
            ConvBlock(narrow),
            nn.SiLU(),
            nn.Conv2d(narrow, 4 * 3, 3, padding=1),
            nn.PixelShuffle(2),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: DraftConfig) -> "Draft":
        """The untrained generator of these settings."""
        return cls(config)

    @in_own_precision
    def forward(self, z: Float[Tensor, "b {self.config.z_dim}"]) -> Float[Tensor, "b 3 s s"]:
        """Pictures for whitened embeddings, about in [-1, 1]."""
        coarse = rearrange(self.coarse(self.read(z)), "b (c h w) -> b c h w", h=self.side, w=self.side)
        return self.draw(coarse.contiguous(memory_format=torch.channels_last))

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Pairs `{z_img, image}` with the noise that their embeddings get."""
        require(batch, "z_img", "image")
        batch = readable(batch, self)
        noise = normal((len(batch["image"]), self.config.z_dim), generator)
        return {**batch, "z_noise": self.config.z_noise * noise.to(batch["image"])}

    def loss(self, batch: Batch) -> Batch:
        """The mean squared error of the pictures drawn for `{z_img, image, z_noise}`."""
        require(batch, "z_img", "image")
        batch = readable(batch, self)
        z = self.space.to_model(batch["z_img"]) + batch.get("z_noise", 0.0)
        return {"loss": F.mse_loss(self(z).float(), batch["image"])}


class VectorBlock(nn.Module):
    """x + B gelu(A norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a = nn.Linear(width, width)
        self.b = zeroed(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "b w"]) -> Float[Tensor, "b w"]:
        return x + self.b(F.gelu(self.a(self.norm(x))))


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions round an identity; no embedding: what they draw already lies in the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.b = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.b(F.silu(self.a(F.silu(self.norm(x)))))
