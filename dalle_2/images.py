"""Tensor <-> picture, opening whatever people call an image, and sheets of pictures.

Inside, pictures are float tensors in [-1, 1], (B, 3, H, W); outside, PIL pictures in RGB.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dalle_2.errors import DataError, UsageError
from dalle_2.metadata import read_metadata, reason, save_image

__all__ = [
    "check_picture", "from_pil", "grid", "open_alpha", "open_image", "read_metadata", "save_image", "to_pil", "to_pils",
]  # fmt: skip

P = TypeVar("P")

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; Pillow warns from here on

Resize = Literal["crop", "squash", "pad"]

_WHITE, _RED, _INK = (255, 255, 255), (214, 39, 40), (40, 40, 40)


def to_pil(x: Float[Tensor, "3 h w"]) -> Image.Image:
    """[-1, 1] to an 8-bit RGB picture; values outside are clamped. Raises UsageError for NaN and infinity."""
    x = x.detach().to("cpu", torch.float32)
    if not x.isfinite().all():
        raise UsageError("the picture has values that are not finite: its numbers overflowed, try float32")
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def to_pils(batch: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """`to_pil` for each picture of a batch."""
    return [to_pil(x) for x in batch]


def from_pil(image: Image.Image, size: int | None = None, resize: Resize = "crop") -> Float[Tensor, "3 h w"]:
    """A picture as a tensor in [-1, 1], antialiased to `size` x `size` pixels if a size is given.

    A picture that is not square is cropped around its centre, squashed, or padded with white. Raises UsageError for
    what `check_picture` refuses.
    """
    check_picture(image)
    image = _flatten(image)
    if size is not None and image.size != (size, size):
        image = _resized(image, size, resize)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


def check_picture(image: object) -> None:
    """Raises UsageError for anything but a PIL picture."""
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"expected a PIL picture, got {type(image).__name__}: dalle_2.images has open_image for a file, and to_pil "
            "for a tensor"
        )


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Any picture as upright 8-bit RGB: EXIF rotation applied, transparency on white, first frame of several.

    Raises DataError with the file's name if it is missing, broken, or larger than MAX_PIXELS.
    """
    return _opened(path, _flatten)


def open_alpha(path: str | os.PathLike[str]) -> Image.Image | None:
    """How opaque each pixel of a picture is, 0 ... 255, upright as `open_image` gives it; None without transparency.

    Raises what `open_image` raises.
    """
    return _opened(path, _alpha)


def _opened(path: str | os.PathLike[str], read: Callable[[Image.Image], P]) -> P:
    try:
        with Image.open(path, formats=_formats()) as image:
            _check_size(image)
            image.seek(0)
            return read(ImageOps.exif_transpose(image))
    except DataError as error:
        raise DataError(f"can't use {path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except Exception as error:
        # Pillow's readers fail in many ways on a broken file: OSError, SyntaxError, struct.error, EOFError.
        raise DataError(f"can't read {path} as a picture: {reason(error)}") from None


def grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    marks: Sequence[bool] | None = None,
) -> Image.Image:
    """One sheet of pictures, row by row; a label goes under its picture, a mark draws a red frame around it.

    Raises UsageError for no pictures, no columns, or another number of labels or marks than of pictures.
    """
    _check_sheet(images, columns, labels, marks)
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    font = ImageFont.load_default(max(9, width // 16))
    texts = [_wrap(label, width, font) for label in labels or [""] * len(images)]
    step_x, step_y = width + 2 * _gap(width), height + 2 * _gap(width) + _text_height(texts, font)
    sheet = Image.new("RGB", (columns * step_x, math.ceil(len(images) / columns) * step_y), _WHITE)
    for k, (image, text) in enumerate(zip(images, texts, strict=True)):
        corner = (k % columns * step_x + _gap(width), k // columns * step_y + _gap(width))
        _place(sheet, image, corner, text, font, marked=bool(marks and marks[k]))
    return sheet


def _flatten(image: Image.Image) -> Image.Image:
    """8-bit RGB; what shows through is white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if _shows_through(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image | None:
    return image.convert("RGBA").getchannel("A") if _shows_through(image) else None


def _shows_through(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """One deep channel to 0 ... 255. Floats within [0, 1] and 16-bit integers count as the full range."""
    highest = pixels.max(initial=0)
    if np.issubdtype(pixels.dtype, np.floating):
        scale = 255.0 if highest <= 1 else 1.0
    else:
        scale = 1 / 257 if pixels.dtype == np.uint16 or highest > 255 else 1.0
    return np.nan_to_num(pixels * scale).round().clip(0, 255).astype(np.uint8)


def _resized(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    if size < 1:
        raise UsageError(f"a picture's size must be at least 1, got {size}")
    box, filter_ = (size, size), Image.Resampling.BICUBIC
    if resize == "crop":
        return ImageOps.fit(image, box, filter_)
    if resize == "pad":
        return ImageOps.pad(image, box, filter_, color=_WHITE)
    return image.resize(box, filter_)


@cache
def _formats() -> tuple[str, ...]:
    """Pixel formats only: opening EPS, for one, would start another program."""
    Image.init()
    wanted = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
    return tuple(name for name in wanted if name in Image.OPEN)


def _check_size(image: Image.Image) -> None:
    """From the heading alone: a small file can unfold into gigabytes."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")


def _check_sheet(
    images: Sequence[Image.Image],
    columns: int | None,
    labels: Sequence[str] | None,
    marks: Sequence[bool] | None,
) -> None:
    if not images:
        raise UsageError("a sheet needs at least one picture, got none")
    if columns is not None and columns < 1:
        raise UsageError(f"a sheet needs at least one column, got {columns}")
    for name, given in (("labels", labels), ("marks", marks)):
        if given is not None and len(given) != len(images):
            raise UsageError(f"{len(images)} pictures need as many {name}, got {len(given)}")


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _gap(width: int) -> int:
    return max(2, width // 32)


def _place(
    sheet: Image.Image, image: Image.Image, corner: tuple[int, int], text: str, font: Font, marked: bool
) -> None:
    draw, (x, y), gap = ImageDraw.Draw(sheet), corner, _gap(image.width)
    if marked:
        draw.rectangle((x - gap, y - gap, x + image.width + gap - 1, y + image.height + gap - 1), fill=_RED)
    sheet.paste(_flatten(image), corner)
    if text:
        draw.multiline_text((x, y + image.height + gap), text, fill=_INK, font=font)


def _wrap(text: str, width: int, font: Font) -> str:
    """Breaks a label between words so that each line fits `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _text_height(texts: Sequence[str], font: Font) -> int:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [draw.multiline_textbbox((0, 0), text, font=font) for text in texts if text]
    return math.ceil(max((box[3] for box in boxes), default=0))
