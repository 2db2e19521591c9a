"""Which pictures cost too much memory or time, by their headings alone: a small file can unfold into gigabytes."""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from dalle_2.errors import DataError
from dalle_2.images.scans import scans

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; Pillow warns from here on
_MAX_SIDE = 2**20  # so that two rows are a strip, see `dalle_2.images.strips`

_COSTLY = ("WEBP", "AVIF", "JPEG2000")  # 12 to 16 bytes a pixel
_MAX_COSTLY = 25_000_000
_MAX_FOUR = 24_000_000  # of a JPEG 2000 with four channels, as its decoder keeps four bytes of each
_MAX_TURNED = 70_000_000  # a TIFF is turned while it is loaded, in a second copy

# What Pillow decodes in Python, pixel by pixel, at most so many of which take some seconds.
_SLOW = {
    "bmp_rle": (25_000_000, "BMP that is packed"),
    "ppm": (4_000_000, "PPM of other numbers than 0 to 255"),
    "ppm_plain": (4_000_000, "PPM in plain text"),
}

# A JPEG in several scans is decoded from coefficients of two bytes each, all of them in memory, and each scan goes
# over them all.
_MAX_COEFFICIENTS = 200_000_000
_MAX_SCANS = 100
_LOOKED_AT = 2**28  # bytes


class _Limit(NamedTuple):
    pixels: int
    of: str = ""


def check_costs(image: Image.Image) -> None:
    """Raises DataError for a picture, not loaded yet, that takes more than 600 megabytes or some seconds to read."""
    limit = min(_limits(image), key=lambda limit: limit.pixels)
    if image.width * image.height > limit.pixels:
        raise DataError(_refusal(image.size, limit))
    if max(image.size) > _MAX_SIDE:
        raise DataError(f"{image.width} x {image.height} pixels: no side may have more than {_MAX_SIDE:,}")


def _limits(image: Image.Image) -> Iterator[_Limit]:
    yield _Limit(MAX_PIXELS)
    if image.format in _COSTLY:
        yield _Limit(_MAX_COSTLY, image.format)
    if image.format == "JPEG2000" and len(image.getbands()) > 3:
        yield _Limit(_MAX_FOUR, "JPEG2000 of four channels")
    if (decoder := _decoder(image)) in _SLOW:
        yield _Limit(*_SLOW[decoder])
    if image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        yield _Limit(_MAX_TURNED, "TIFF that is to be turned")
    if isinstance(image, JpegImageFile) and (found := _scans(image)) > 1:
        if found > _MAX_SCANS:
            raise DataError(f"it has more than {_MAX_SCANS} scans: save it as a PNG")
        yield _Limit(int(_MAX_COEFFICIENTS / max(1, _coefficients(image))), "JPEG in several scans")


def _decoder(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    return str(tiles[0][0]) if tiles else ""


def _scans(image: JpegImageFile) -> int:
    """How many scans are decoded, counted up to one too many: of a plain JPEG the first, whatever follows it."""
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    found = scans(image.fp.read(_LOOKED_AT))
    image.fp.seek(place)
    first = next(found, 0)
    several = "progressive" in image.info or first < image.layers
    count = 1 + sum(1 for _ in islice(found, _MAX_SCANS)) if several else 1
    return count + several  # one in which a part of the components never comes is kept in memory, too


def _coefficients(image: JpegImageFile) -> float:
    """How many numbers a pixel has, of all channels."""
    factors = [(across, down) for _, across, down, _ in image.layer]
    full = max(across for across, _ in factors) * max(down for _, down in factors)
    return sum(across * down for across, down in factors) / max(1, full)


def check_icon(path: str) -> None:
    """The same for an ICO, whose table says nothing of the pictures in it, and which Pillow loads when it is opened."""
    with open(path, "rb") as file:
        heading = file.read(6)
        if not heading.startswith(b"\0\0\1\0") or len(heading) < 6:
            return
        entries = file.read(16 * int.from_bytes(heading[4:], "little"))
        for place in {entries[at + 12 : at + 16] for at in range(0, len(entries) - 15, 16)}:
            file.seek(int.from_bytes(place, "little"))
            _check_frame(file.read(24).ljust(24, b"\0"))


def _check_frame(heading: bytes) -> None:
    """heading: of a PNG, or of a BMP without its file's."""
    if heading.startswith(b"\x89PNG"):
        width, height = struct.unpack(">II", heading[16:24])
    else:
        width, height = map(abs, struct.unpack("<ii", heading[4:12]))
    if width * height > _MAX_COSTLY:
        raise DataError(_refusal((width, height), _Limit(_MAX_COSTLY, "ICO")))


def _refusal(size: tuple[int, int], limit: _Limit) -> str:
    article = "an" if limit.of[:1] in ("A", "I") else "a"
    advice = f", as many as are read of {article} {limit.of}: save it as a PNG" if limit.of else ""
    return f"{size[0]} x {size[1]} pixels are more than {limit.pixels:,}{advice}"
