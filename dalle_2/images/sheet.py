"""Sheets of pictures."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from dalle_2.errors import UsageError
from dalle_2.images.layers import WHITE, flattened
from dalle_2.images.lettering import Font, lettered, wrapped

_RED, _INK = (214, 39, 40), (40, 40, 40)


def grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    marks: Sequence[bool] | None = None,
) -> Image.Image:
    """One sheet of pictures, row by row; a label goes under its picture, a mark draws a red frame around it.

    Labels are written in a font that has their signs, see `lettered`, and break where the picture ends. Raises
    UsageError for no pictures, no columns, or another number of labels or marks than of pictures.
    """
    _check_sheet(images, columns, labels, marks)
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    written, font = lettered(labels or [""] * len(images), max(9, width // 16))
    texts = [wrapped(label, width, font) for label in written]
    step_x, step_y = width + 2 * _gap(width), height + 2 * _gap(width) + _text_height(texts, font)
    sheet = Image.new("RGB", (columns * step_x, math.ceil(len(images) / columns) * step_y), WHITE)
    for k, (image, text) in enumerate(zip(images, texts, strict=True)):
        corner = (k % columns * step_x + _gap(width), k // columns * step_y + _gap(width))
        _place(sheet, image, corner, text, font, marked=bool(marks and marks[k]))
    return sheet


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


def _gap(width: int) -> int:
    return max(2, width // 32)


def _place(
    sheet: Image.Image, image: Image.Image, corner: tuple[int, int], text: str, font: Font, marked: bool
) -> None:
    draw, (x, y), gap = ImageDraw.Draw(sheet), corner, _gap(image.width)
    if marked:
        draw.rectangle((x - gap, y - gap, x + image.width + gap - 1, y + image.height + gap - 1), fill=_RED)
    sheet.paste(flattened(image), corner)
    if text:
        draw.multiline_text((x, y + image.height + gap), text, fill=_INK, font=font)


def _text_height(texts: Sequence[str], font: Font) -> int:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [draw.multiline_textbbox((0, 0), text, font=font) for text in texts if text]
    return math.ceil(max((box[3] for box in boxes), default=0))
