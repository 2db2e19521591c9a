"""What a mask paints: the one rule of every way in.

A mask without transparency paints where it is white. One with transparency is either the picture with a part erased
(or black around an erased part), as the OpenAI Images API takes it, and paints what is transparent; or a layer of white
strokes, as a paint program saves it, and paints the strokes. Which of the two follows from what is visible of it.
"""

from typing import NamedTuple, get_args

from PIL import Image, ImageChops

from dalle_2.errors import UsageError
from dalle_2.images import Layers
from dalle_2.inference.generation import MaskMeans

PAINTED = 128  # a mask's brightness from which on a pixel is painted anew
OPAQUE = 250  # an alpha from which on a pixel is no more than a trace of a lossy format away from opaque
STROKE = 240  # the brightness from which on all that is visible counts as white


class Painted(NamedTuple):
    """part: L, 255 where a mask paints and 0 elsewhere. said: what was understood of its transparency, else empty."""

    part: Image.Image
    said: str


def painted(mask: Layers, means: str = "auto") -> Painted:
    """The part that a mask paints.

    means: "transparent" paints what is transparent, "white" what is visible and white; "auto" finds out: a mask
    without transparency paints where it is white, one whose visible part is all white too, and any other what is
    transparent. An alpha of half the highest is visible, so that thin strokes and soft edges count.

    Raises UsageError for another meaning, and for a mask without transparency that shall mean it.
    """
    _check(means)
    visible = _visible(mask)
    if visible is None or mask.alpha is None:
        if means == "transparent":
            raise UsageError("the mask has no transparent part: erase what is to be painted, or let it mean white")
        return Painted(_bright(mask, PAINTED), "")
    if means == "white" or (means == "auto" and _strokes(mask, mask.alpha)):
        part = ImageChops.darker(_bright(mask, PAINTED), visible)
        return Painted(part, f"painting the white {share(part)} of the mask and keeping its transparent part")
    part = ImageChops.invert(visible)
    return Painted(part, f"painting the transparent {share(part)} of the mask")


def transparent(picture: Layers, means: str = "auto") -> Painted | None:
    """The transparent part of a picture that is its own mask; None where it has none.

    Raises UsageError for another meaning than that.
    """
    _check(means)
    if means == "white":
        raise UsageError("without a mask the transparent part of the picture is painted: give a mask that means white")
    visible = _visible(picture)
    if visible is None:
        return None
    part = ImageChops.invert(visible)
    return Painted(part, f"painting the transparent {share(part)} of the picture")


def share(part: Image.Image) -> str:
    """How much of a mask is 255, in words."""
    percent = 100 * part.histogram()[255] / (part.width * part.height)
    return f"{percent:.0f} %" if percent >= 0.5 or percent == 0 else "less than 1 %"


def _check(means: str) -> None:
    if means not in get_args(MaskMeans):
        raise UsageError(f"a mask means auto, transparent or white, not {means!r}")


def _visible(mask: Layers) -> Image.Image | None:
    """255 where the mask is visible, else 0; None without transparency, or with the same everywhere but nothing."""
    if mask.alpha is None:
        return None
    lowest, highest = _extremes(mask.alpha)
    if lowest >= OPAQUE or lowest == highest > 0:
        return None
    return mask.alpha.point([255 if 2 * alpha >= max(1, highest) else 0 for alpha in range(256)])


def _bright(mask: Layers, least: int) -> Image.Image:
    return mask.colour.convert("L").point([255 if value >= least else 0 for value in range(256)])


def _strokes(mask: Layers, alpha: Image.Image) -> bool:
    """Whether something is visible, all of it white. Soft edges may be grey: what is most opaque is looked at."""
    _, highest = _extremes(alpha)
    clear = alpha.point([255 if value >= 0.95 * highest > 0 else 0 for value in range(256)])
    coloured = ImageChops.darker(clear, ImageChops.invert(_bright(mask, STROKE)))
    return clear.getbbox() is not None and coloured.getbbox() is None


def _extremes(channel: Image.Image) -> tuple[int, int]:
    found = [value for value, count in enumerate(channel.histogram()) if count]
    return found[0], found[-1]
