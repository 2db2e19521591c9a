"""Picture files: whatever people call an image, upright, in colours that are sRGB's, in bounded memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from PIL import Image
from PIL.ImageFile import ImageFile

from dalle_2.errors import DataError
from dalle_2.images.layers import LARGE, Layers, apart, eight_bit, on_white
from dalle_2.images.limits import check_costs, check_icon
from dalle_2.images.said import profile_of, turn_of
from dalle_2.metadata import reading_long_texts, reason
from dalle_2.paths import require_plain_file


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Any picture as upright 8-bit sRGB: orientation and colour profile applied, transparency on white, first frame.

    One of more than 33 million pixels comes half as wide and high. Warns of a profile that can't be used, and of deep
    numbers without a range of their own (`dalle_2.images.depth`). Raises DataError with the file's name if it is
    missing, no plain file, broken, or more than is read of its kind (`dalle_2.images.limits`): MAX_PIXELS, or 25
    million of a WebP, AVIF or JPEG 2000. No picture takes more than 600 megabytes.
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


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of a picture as it lies there, by its heading alone. Raises whatever it meets."""
    with _opened(os.fspath(path)) as image:
        return image.size


class _Read(NamedTuple):
    """What `apart` takes, and how to turn it. All else that a file says, and its decoder, is let go."""

    image: Image.Image
    profile: bytes | None
    turn: Image.Transpose | None


def _read(name: str) -> _Read:
    with _opened(name) as image:
        image.seek(0)
        if image.width * image.height > LARGE:
            image.draft(None, (max(1, image.width // 2), max(1, image.height // 2)))  # a JPEG can be decoded smaller
        made = eight_bit(image, name, LARGE)
        profile, turn = profile_of(image), turn_of(image)
    return _Read(_bare(made), profile, turn)


@contextmanager
def _opened(name: str) -> Iterator[Image.Image]:
    """A picture that isn't loaded yet, of a size that may be."""
    require_plain_file(name)
    check_icon(name)
    with Image.open(name, formats=_formats()) as image:
        check_costs(image)
        yield image


def _bare(image: Image.Image) -> Image.Image:
    return image.copy() if isinstance(image, ImageFile) else image


@cache
def _formats() -> tuple[str, ...]:
    """Pixel formats only: opening EPS, for one, would start another program."""
    Image.init()
    wanted = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
    return tuple(name for name in wanted if name in Image.OPEN)
