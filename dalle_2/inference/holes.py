"""Holes in pictures: from a mask or from transparency, at the sizes that the stages need."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.images import check_picture, from_pil, open_alpha, open_image

PAINTED = 128  # a mask's brightness from which on a pixel is painted anew


@dataclass(frozen=True, eq=False)
class Holed:
    """A square picture in [-1, 1] with a hole, True where it is painted anew."""

    picture: Float[Tensor, "3 s s"]
    hole: Bool[Tensor, "1 s s"]

    def filled(self, drawn: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 s s"]:
        """The picture with each of the drawn ones in its hole."""
        return torch.where(self.hole, drawn, self.picture)


def open_holed(picture: Path, mask: Path | None, size: int) -> Holed:
    """A picture and its hole, cut to a centred square of `size` pixels.

    The hole is where the mask is white, or without a mask where the picture is transparent. Raises DataError for files
    that are no pictures, UsageError for a mask of another size than the picture and for a hole that is nothing or all.
    """
    image = open_image(picture)
    if mask is not None:
        return holed(image, open_image(mask).convert("L"), size)
    alpha = open_alpha(picture)
    if alpha is None or alpha.getextrema()[0] == 255:
        raise UsageError(f"{picture} has no transparent part and no mask was given: say with a mask what to paint")
    return holed(image, ImageOps.invert(alpha), size)


def holed(image: Image.Image, mask: Image.Image, size: int) -> Holed:
    """The same from pictures in memory; white in the mask is painted anew.

        painted = inpaint(pipeline, holed(picture, mask, pipeline.size), "a red circle above a blue square")
    """
    check_picture(image)
    check_picture(mask)
    if mask.size != image.size:
        raise UsageError(
            f"the mask has {mask.width} x {mask.height} pixels and the picture {image.width} x {image.height}: "
            "make the mask as large as the picture"
        )
    painted = mask.convert("L").point(lambda brightness: 255 if brightness >= PAINTED else 0)
    # A pixel that lies partly in the hole belongs to it: the thinnest line stays one.
    square = ImageOps.fit(painted, (size, size), Image.Resampling.BOX)
    hole = torch.tensor(list(square.getdata()), dtype=torch.int64, device="cpu").view(1, size, size) > 0
    check_hole(hole)
    return Holed(from_pil(image, size), hole)


def check_hole(hole: Bool[Tensor, "1 h w"]) -> None:
    """Raises UsageError for a mask that hides nothing, or everything."""
    if not bool(hole.any()):
        raise UsageError("the mask hides nothing: paint white what is to be drawn anew")
    if bool(hole.all()):
        raise UsageError("the mask hides the whole picture: leave something of it, or use dalle2 generate")


def shrunk(holes: Holed, size: int) -> Holed:
    """The picture at a smaller size; a pixel that lies partly in the hole belongs to it."""
    factor = holes.picture.shape[-1] // size
    picture = F.avg_pool2d(holes.picture[None], factor)[0]
    hole = F.max_pool2d(holes.hole[None].float(), factor)[0] > 0
    return Holed(picture, hole)
