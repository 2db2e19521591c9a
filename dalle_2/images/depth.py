"""Channels of more than 8 bits: what counts as black and as white.

Unsigned 16-bit integers have a range of their own, 0 to 65,535 (12-bit ones 0 to 4,095), and so have floats within
[0, 1] and 32-bit integers within 0 to 255. Any others, floats up to 4,095 for one, say no brightness by themselves:
there 0, or the lowest number if that is negative, is black and the highest is white, and a warning says so.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageChops

from dalle_2.errors import UsageError
from dalle_2.images.strips import strips

_BITS, _PHOTOMETRIC, _SAMPLES = 258, 262, 339  # tags of a TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_SIXTEEN = 65_535


class _Range(NamedTuple):
    black: float
    white: float


def is_deep(image: Image.Image) -> bool:
    """Whether the picture is one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def grey(image: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """What makes 8-bit grey of a strip of the deep channel. NaN is black, infinity white, minus infinity black.

    Raises UsageError for a channel without any finite number.
    """
    bounds, inverted = _stated(image) or _found(image, name), _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO

    def level(strip: Image.Image) -> Image.Image:
        made = Image.fromarray(_eight_bit(_numbers(strip, image), bounds))
        return ImageChops.invert(made) if inverted else made

    return level


def matches(strip: Image.Image, value: int) -> Image.Image:
    """255 where the deep channel has exactly that value, else 0."""
    return Image.fromarray(np.where(np.asarray(strip) == value, 255, 0).astype(np.uint8))


def _stated(image: Image.Image) -> _Range | None:
    """The range that follows from the kind of numbers."""
    if image.mode.startswith("I;16"):
        return _Range(0, 4095 if _tag(image, _BITS) == (12,) else _SIXTEEN)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return _Range(0, _SIXTEEN)
    return None


def _found(image: Image.Image, name: str) -> _Range:
    """The range that follows from the numbers themselves."""
    lowest, highest = _extremes(image)
    known = 1 if image.mode == "F" else 255
    if lowest >= 0 and highest <= known:
        return _Range(0, known)
    bounds = _Range(min(0.0, lowest), highest)
    warnings.warn(
        f"{name} has numbers from {lowest:.6g} to {highest:.6g}, which say no brightness by themselves: "
        f"{bounds.black:.6g} is shown as black and {bounds.white:.6g} as white",
        stacklevel=2,
    )
    return bounds


def _extremes(image: Image.Image) -> tuple[float, float]:
    found = [bounds for _, strip in strips(image) if (bounds := _finite_extremes(_numbers(strip, image)))]
    if not found:
        raise UsageError("it has no finite number: every pixel is NaN or infinite")
    return min(low for low, _ in found), max(high for _, high in found)


def _finite_extremes(numbers: Num[np.ndarray, "h w"]) -> tuple[float, float] | None:
    finite = numbers[np.isfinite(numbers)] if numbers.dtype.kind == "f" else numbers
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _numbers(strip: Image.Image, image: Image.Image) -> Num[np.ndarray, "h w"]:
    """A strip's numbers; Pillow gives the unsigned integers of a TIFF, too, as signed ones."""
    numbers = np.asarray(strip)
    unsigned = image.mode == "I" and _tag(image, _BITS) == (32,) and _tag(image, _SAMPLES, (1,)) == (_UNSIGNED,)
    return numbers.view(np.uint32) if unsigned else numbers


def _eight_bit(numbers: Num[np.ndarray, "h w"], bounds: _Range) -> UInt8[np.ndarray, "h w"]:
    scale = 255 / ((bounds.white - bounds.black) or 1.0)
    with np.errstate(invalid="ignore"):  # infinity minus itself
        levels = np.subtract(numbers, bounds.black, dtype=np.float64)
        levels *= scale
    np.nan_to_num(levels, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(levels, 0, 255, out=levels), out=levels).astype(np.uint8)


def _tag(image: Image.Image, tag: int, default: Any = None) -> Any:
    """A tag of a TIFF; the default for any other picture."""
    tags = getattr(image, "tag_v2", None)
    return default if tags is None else tags.get(tag, default)
