"""Holes in pictures: what an inpainting decoder is trained to fill (GLIDE, section 3.2)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dalle_2.sampling.noise import uniform

LEAST, MOST = 0.2, 0.9  # sides of a hole, as shares of the picture's
WHOLE = 0.1  # share of pictures of which nothing is known


def random_holes(rows: int, size: int, generator: torch.Generator) -> Bool[Tensor, "{rows} 1 {size} {size}"]:
    """One hole a picture, True inside: a box or an ellipse anywhere, all beyond a box, or the whole picture.

    What lies beyond a box is what outpainting has to fill.
    """
    draw = uniform((rows, 6), generator)
    sides = LEAST + (MOST - LEAST) * draw[:, :2]
    corners = draw[:, 2:4] - sides / 2  # its middle lies in the picture, and it may reach over the border
    ticks = (torch.arange(size, dtype=torch.float32, device="cpu") + 0.5) / size
    across = [(ticks - corners[:, k, None]) / sides[:, k, None] * 2 - 1 for k in range(2)]
    y, x = across[0][:, :, None], across[1][:, None, :]
    box = torch.maximum(y.abs(), x.abs()) <= 1
    ellipse = y**2 + x**2 <= 1
    kind = draw[:, 4, None, None]
    hole = torch.where(kind < 0.5, box, torch.where(kind < 0.75, ellipse, ~box))
    return (hole | (draw[:, 5, None, None] < WHOLE))[:, None]


def known_channels(
    picture: Float[Tensor, "b 3 h w"], hole: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, "b 4 h w"]:
    """What a network sees of a picture with a hole: the picture, grey inside, and 1 where it is known."""
    known = (~hole).to(picture)
    return torch.cat([picture * known, known], dim=1)
