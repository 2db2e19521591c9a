"""Picture files: whatever people call an image, upright, in colours that are sRGB's, in bounded memory."""

import os
from functools import cache
from typing import NamedTuple

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from dalle_2.errors import DataError
from dalle_2.images.layers import LARGE, Layers, apart, eight_bit, on_white
from dalle_2.images.matrix_profile import adobe_rgb
from dalle_2.metadata import reading_long_texts, reason

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; Pillow warns from here on

# Formats whose decoders take 12 to 16 bytes a pixel, and know no smaller way.
_COSTLY = ("WEBP", "AVIF", "JPEG2000")
_MAX_COSTLY_PIXELS = 25_000_000

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


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
        colour, alpha = apart(image, profile, name)
    except DataError as error:
        raise DataError(f"can't use {name}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"there is no file {name}") from None
    except Exception as error:
        # Pillow's readers fail in many ways on a broken file: OSError, SyntaxError, struct.error, EOFError.
        raise DataError(f"can't read {name} as a picture: {reason(error)}") from None
    return Layers(_upright(colour, turn), alpha and _upright(alpha, turn))


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
        turn, profile = _TURNS.get(_orientation(image)), image.info.get("icc_profile") or _camera_profile(image)
    return _Read(_bare(made), profile, turn)


def _upright(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    image = image if turn is None else image.transpose(turn)
    image.info = {}  # none of it holds any longer
    return image


def _orientation(image: Image.Image) -> int:
    """1 to 8, of EXIF or, without it, of XMP. Other tags may be as wrong as they like."""
    if image.format == "TIFF":
        return 1  # turned while it was loaded
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # a picture is no less sound for a camera that wrote nonsense about it
        return 1


def _bare(image: Image.Image) -> Image.Image:
    return image.copy() if isinstance(image, ImageFile) else image


def _camera_profile(image: Image.Image) -> bytes | None:
    """Adobe RGB where EXIF says so, as cameras do, which then add no profile (DCF 2.0, "R03")."""
    try:
        found = image.getexif().get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # as above
        return None
    return adobe_rgb() if isinstance(found, str) and found.startswith("R03") else None


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
