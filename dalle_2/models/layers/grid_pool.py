"""All patches of a picture as one embedding, each place with weights of its own."""

from jaxtyping import Float
from torch import Tensor, nn


class GridPool(nn.Module):
    """Squeezes every patch to a few numbers and maps the whole grid to the embedding.

    A class token learns only slowly what lies where; here it can be read off from the first step. Most patches of a
    picture show background, and summed over all of them it would drown everything else: so the grid holds each
    patch's difference from the median patch. What is there at all, wherever it is, comes from the largest value of
    every feature: weights of a place of its own learn a shape once for every place, this learns it once.

    most: off for weights of format 1, which take the mean patch in its stead.
    """

    def __init__(
        self, width: int, patches: int, embed_dim: int, *, channels: int = 16, most: bool = True
    ) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, channels)
        self.norm = nn.LayerNorm(patches * channels)
        self.whole = nn.Linear(patches * channels, embed_dim)
        self.norm_most = nn.LayerNorm(width) if most else None
        self.most = nn.Linear(width, embed_dim) if most else None
        self.mean = None if most else nn.Linear(width, embed_dim)

    def forward(self, patches: Float[Tensor, "b n w"]) -> Float[Tensor, "b d"]:
        squeezed = self.squeeze(patches)
        apart = squeezed - squeezed.float().median(dim=1, keepdim=True).values.to(squeezed)
        return self.whole(self.norm(apart.flatten(1))) + self._anywhere(patches)

    def _anywhere(self, patches: Float[Tensor, "b n w"]) -> Float[Tensor, "b d"]:
        if self.most is not None and self.norm_most is not None:
            return self.most(self.norm_most(patches.amax(dim=1)))
        assert self.mean is not None
        return 0.5 * self.mean(patches.mean(dim=1))
