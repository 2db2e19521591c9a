"""Picture files: whatever people call an image, upright, in colours that are sRGB's, in bounded memory."""

import os
from functools import cache
from typing import NamedTuple

from PIL import Image
from PIL.ImageFile import ImageFile

from dalle_2.errors import DataError
from dalle_2.images.layers import LARGE, Layers, apart, eight_bit, on_white
from dalle_2.images.said import profile_of, turn_of
from dalle_2.metadata import reading_long_texts, reason

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; Pillow warns from here on

# Formats whose decoders take 12 to 16 bytes a pixel, and know no smaller way.
_COSTLY = ("WEBP", "AVIF", "JPEG2000")
_MAX_COSTLY_PIXELS = 25_000_000


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Any picture as upright 8-bit sRGB: orientation and colour profile applied, transparency on white, first frame.

    One of more than 33 million pixels comes half as wide and high. Warns of a profile that can't be used, and of deep
    numbers without a range of their own (`dalle_2.images.depth`). Raises DataError with the file's name if it is
    missing, broken, or larger than MAX_PIXELS, 25 million pixels as WebP, AVIF or JPEG 2000.
    """
    return on_white(open_layers(path))


def open_layers(path: str | os.PathLike[str]) -> Layers:
    """The same with colours and transparency apart. Warns and raises as `open_image` does."""
    name = os.fspath(path)
    try:
        image, profile, turn = reading_long_texts(lambda: _read(name))
        parts = apart(image, profile, turn, name)
    except DataError as error:
        raise DataError(f"can't use {name}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"there is no file {name}") from None
    except Exception as error:
        # Pillow's readers fail in many ways on a broken file: OSError, SyntaxError, struct.error, EOFError.
        raise DataError(f"can't read {name} as a picture: {reason(error)}") from None
    for layer in (parts.colour, parts.alpha):
        if layer is not None:
            layer.info = {}  # what the file said no longer holds
    return parts


class _Read(NamedTuple):
    """What `apart` takes, and how to turn it. All else that a file says, and its decoder, is let go."""

    image: Image.Image
    profile: bytes | None
    turn: Image.Transpose | None


def _read(name: str) -> _Read:
    with Image.open(name, formats=_formats()) as image:
        _check_size(image)
        image.seek(0)
        if image.width * image.height > LARGE:
            image.draft(None, ((image.width + 1) // 2, (image.height + 1) // 2))  # a JPEG can be decoded smaller
        made = eight_bit(image, name, LARGE)
        profile, turn = profile_of(image), turn_of(image)
    return _Read(_bare(made), profile, turn)


def _bare(image: Image.Image) -> Image.Image:
    return image.copy() if isinstance(image, ImageFile) else image


@cache
def _formats() -> tuple[str, ...]:
    """Pixel formats only: opening EPS, for one, would start another program."""
    Image.init()
    wanted = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
    return tuple(name for name in wanted if name in Image.OPEN)


def _check_size(image: Image.Image) -> None:
    """From the heading alone: a small file can unfold into gigabytes."""
    most = _MAX_COSTLY_PIXELS if image.format in _COSTLY else MAX_PIXELS
    if image.width * image.height > most:
        raise DataError(f"{image.width} x {image.height} pixels are more than {most:,}{_advice(image)}")


def _advice(image: Image.Image) -> str:
    return f", as many as are read of a {image.format}: save it as a PNG" if image.format in _COSTLY else ""
