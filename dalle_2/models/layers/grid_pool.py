"""All patches of a picture as one embedding, each place with weights of its own."""

from jaxtyping import Float
from torch import Tensor, nn


class GridPool(nn.Module):
    """Squeezes every patch to a few numbers and maps the whole grid to the embedding.

    A class token learns only slowly what lies where; here it can be read off from the first step. Most patches of a
    picture show background, and summed over all of them it would drown everything else: so the grid holds each
    patch's difference from the median patch, and the mean patch is added on its own.
    """

    def __init__(self, width: int, patches: int, embed_dim: int, *, channels: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, channels)
        self.norm = nn.LayerNorm(patches * channels)
        self.whole = nn.Linear(patches * channels, embed_dim)
        self.mean = nn.Linear(width, embed_dim)

    def forward(self, patches: Float[Tensor, "b n w"]) -> Float[Tensor, "b d"]:
        squeezed = self.squeeze(patches)
        apart = squeezed - squeezed.float().median(dim=1, keepdim=True).values.to(squeezed)
        return self.whole(self.norm(apart.flatten(1))) + 0.5 * self.mean(patches.mean(dim=1))
