"""Holes in pictures: from a mask or from transparency, at the sizes that the stages need."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageChops, ImageOps
from torch import Tensor
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.images import Layers, check_picture, flattened, from_pil, layers, on_white, open_layers
from dalle_2.inference.mask_meaning import Painted, painted, transparent


@dataclass(frozen=True, eq=False)
class Holed:
    """A square picture in [-1, 1] with a hole, True where it is painted anew.

    understood: which part of a mask that has transparency was taken for the hole, in words.
    """

    picture: Float[Tensor, "3 s s"]
    hole: Bool[Tensor, "1 s s"]
    understood: str = ""

    def filled(self, drawn: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 s s"]:
        """The picture with each of the drawn ones in its hole."""
        return torch.where(self.hole, drawn, self.picture)


def open_holed(picture: Path, mask: Path | None, size: int, *, means: str = "auto") -> Holed:
    """A picture and its hole, cut to a centred square of `size` pixels.

    The hole is what the mask paints, by `painted` of `dalle_2.inference.mask_meaning`, or without a mask where the
    picture is transparent. Raises DataError for files that are no pictures, UsageError for a mask of another size than
    the picture, for a hole that is nothing or all, and as `painted` does.
    """
    image = open_layers(picture)
    if mask is None:
        return _erased(image, size, str(picture), means)
    return _masked(on_white(image), open_layers(mask), size, means)


def holed(image: Image.Image, mask: Image.Image | None, size: int, *, means: str = "auto") -> Holed:
    """The same from pictures in memory; a mask without transparency paints where it is white.

        made = inpaint(pipeline, holed(picture, mask, pipeline.size), "a red circle above a blue square")

    mask: None paints where the picture is transparent. means: "transparent" or "white" where the mask has
    transparency; by itself what is visible of it decides, and a warning says what was understood.
    """
    check_picture(image)
    if mask is None:
        return _erased(layers(image), size, "the picture", means)
    check_picture(mask)
    found = _masked(flattened(image), layers(mask), size, means)
    if found.understood and means == "auto":
        warnings.warn(f"{found.understood}; means='transparent' or 'white' settles it", stacklevel=2)
    return found


def _masked(image: Image.Image, mask: Layers, size: int, means: str) -> Holed:
    if mask.colour.size != image.size:
        raise UsageError(
            f"the mask has {mask.colour.width} x {mask.colour.height} pixels and the picture {image.width} x "
            f"{image.height}: make the mask as large as the picture"
        )
    return _cut(image, painted(mask, means), size)


def _erased(image: Layers, size: int, name: str, means: str) -> Holed:
    part = transparent(image, means)
    if part is None:
        raise UsageError(f"{name} has no transparent part and no mask was given: say with a mask what to paint")
    # Colours beside the hole stay what they are: nothing of what lies under it is mixed with them.
    whole = image.colour.copy()
    whole.putalpha(ImageChops.invert(part.part))
    square = ImageOps.fit(whole, (size, size), Image.Resampling.BICUBIC) if whole.size != (size, size) else whole
    return _cut(square.convert("RGB"), part, size)


def _cut(image: Image.Image, part: Painted, size: int) -> Holed:
    # A pixel that lies partly in the hole belongs to it: the thinnest line stays one.
    square = ImageOps.fit(part.part, (size, size), Image.Resampling.BOX)
    hole = torch.from_numpy(np.array(square)).view(1, size, size) > 0
    check_hole(hole)
    return Holed(from_pil(image, size), hole, part.said)


def check_hole(hole: Bool[Tensor, "1 h w"]) -> None:
    """Raises UsageError for a mask that hides nothing, or everything."""
    if not bool(hole.any()):
        raise UsageError("the mask hides nothing: paint white, or erase, what is to be drawn anew")
    if bool(hole.all()):
        raise UsageError("the mask hides the whole picture: leave something of it, or use dalle2 generate")


def shrunk(holes: Holed, size: int) -> Holed:
    """The picture at a smaller size; a pixel that lies partly in the hole belongs to it."""
    factor = holes.picture.shape[-1] // size
    picture = F.avg_pool2d(holes.picture[None], factor)[0]
    hole = F.max_pool2d(holes.hole[None].float(), factor)[0] > 0
    return Holed(picture, hole)
