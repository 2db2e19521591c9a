"""Colour profiles: the same numbers are other colours in Display P3 or Adobe RGB than in sRGB.

Embedded ICC profiles count, and a camera's word that it wrote Adobe RGB. A PNG's gAMA and cHRM are left alone: what
writes them and what shows them has never agreed, and files that mean them carry a profile.
"""

import io
import warnings
from functools import lru_cache
from typing import Any

from PIL import Image, ImageChops

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # as a profile's heading names them, and as Pillow does
_ROUNDING = 2  # a profile that changes no colour by more than this is sRGB under some name, and pixels stay as they are


def to_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """A picture in L, RGB or CMYK as RGB with sRGB's numbers; without a profile they are taken for those.

    A profile that is broken or of another kind of picture is left out, with a warning that names the picture.
    """
    if not profile:
        return _rgb(image)
    try:
        return _converted(image, profile)
    except Exception as error:  # ImageCms is missing, or one of many ways in which profiles are broken
        warnings.warn(
            f"{name} has a colour profile that can't be used ({error}): its numbers are taken for sRGB's", stacklevel=2
        )
        return _rgb(image)


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    space, transform = _transform(profile)
    image = image.convert("RGB") if space == "RGB" and image.mode == "L" else image
    if image.mode != space:
        raise ValueError(f"it is for {space} and the picture {image.mode}")
    if transform is None:
        return _rgb(image)
    made: Image.Image = transform.apply(image)
    del made.info["icc_profile"]  # sRGB's, which goes without saying
    return made


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, Any]:
    """(the mode it is for, what turns such pictures into sRGB or None where nothing has to be done)."""
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    found = source.profile.xcolor_space
    if found not in _SPACES:
        raise ValueError(f"it is for {found.strip()}")
    wanted = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.ImageCmsTransform(source, wanted, _SPACES[found], "RGB")
    return _SPACES[found], None if _SPACES[found] == "RGB" and _changes_nothing(transform) else transform


def _changes_nothing(transform: Any) -> bool:
    """Judged by what it does to a grid of colours: sRGB has many names and writers."""
    grid = _colours()
    counted = ImageChops.difference(transform.apply(grid), grid).histogram()  # 256 numbers a channel
    return not any(count for k, count in enumerate(counted) if k % 256 > _ROUNDING)


def _colours() -> Image.Image:
    """16 x 16 x 16 colours from black to white."""
    levels = [17 * k for k in range(16)]
    grid = bytes(value for red in levels for green in levels for blue in levels for value in (red, green, blue))
    return Image.frombytes("RGB", (64, 64), grid)


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
