"""Any PIL picture as two layers: 8-bit sRGB colours, and how opaque each pixel is."""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile

from dalle_2.images.colour import to_srgb
from dalle_2.images.depth import grey, is_deep, matches
from dalle_2.images.said import profile_of, turn_of
from dalle_2.images.strips import by_strips
from dalle_2.images.transparency import scale_key

WHITE = (255, 255, 255)

# What holds more pixels is halved on the way in, which leaves more of them than any stage draws: as three bytes and
# a spare one a pixel, with its copies on the way to sRGB, it would take much of a machine's memory.
LARGE = 2**25

_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_PLAIN = ("L", "LA", "RGB", "RGBA", "CMYK")
_KEYED = ("1", "L", "P", "RGB")  # modes in which one colour, or palette entries, may stand for nothing


class Layers(NamedTuple):
    """colour: RGB, not blended with anything. alpha: L, 255 where opaque; None for a picture without transparency."""

    colour: Image.Image
    alpha: Image.Image | None


def layers(image: Image.Image, name: str = "a picture") -> Layers:
    """Colours and transparency of a picture of any mode; the given one stays as it is.

    name: what warnings call it. A profile that the picture holds is applied, and its deep channel reduced to 8 bits,
    see `to_srgb` and `grey`. What `Image.open` gave is turned upright; what somebody already worked on is left as it
    stands. Raises UsageError for a channel without any finite number.
    """
    plain = eight_bit(image, name)
    return apart(plain, profile_of(image), turn_of(image) if isinstance(image, ImageFile) else None, name)


def eight_bit(image: Image.Image, name: str, most: int | None = None) -> Image.Image:
    """The picture in one of few modes, L, LA, RGB, RGBA and CMYK. most: pixels from which on it is half as large."""
    scale_key(image)
    plain = _deep(image, name) if is_deep(image) else _plain
    if most is not None and image.width * image.height > most:
        return by_strips(image, lambda strip: plain(strip).reduce(2), 2)
    return by_strips(image, plain) if is_deep(image) else plain(image)


def apart(image: Image.Image, profile: bytes | None, turn: Image.Transpose | None, name: str) -> Layers:
    """The layers of a picture that `eight_bit` made, in sRGB and upright."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colour = to_srgb(_opaque(image), profile, name)
    return Layers(colour, alpha) if turn is None else Layers(colour.transpose(turn), alpha and alpha.transpose(turn))


def flattened(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit sRGB, see `layers`; what shows through is white. It may be the given one itself."""
    return on_white(layers(image))


def on_white(parts: Layers) -> Image.Image:
    """The colours on a white sheet."""
    colour, alpha = parts
    if alpha is None:
        return colour
    sheet = colour.copy()
    sheet.paste(WHITE, (0, 0, *sheet.size), ImageChops.invert(alpha))
    return sheet


def _plain(image: Image.Image) -> Image.Image:
    """In one of the `_PLAIN` modes."""
    if image.mode in _PREMULTIPLIED:
        return image.convert(_PREMULTIPLIED[image.mode])
    if image.mode == "PA" or (image.mode in _KEYED and "transparency" in image.info):
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in _PLAIN else image.convert("RGB")


def _deep(image: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """What makes a strip of a deep picture 8-bit grey, with an alpha where a value stands for nothing."""
    level, key = grey(image, name), image.info.get("transparency")
    if not isinstance(key, int):
        return level
    return lambda strip: Image.merge("LA", (level(strip), ImageChops.invert(matches(strip, key))))


def _opaque(image: Image.Image) -> Image.Image:
    """Without its alpha: what is left in an RGB or a grey picture that isn't blended with anything."""
    if image.mode == "RGBA":
        return image.convert("RGB")
    return image.getchannel("L") if image.mode == "LA" else image
