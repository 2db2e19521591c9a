"""Tensor <-> picture."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.images.layers import WHITE, flattened

Resize = Literal["crop", "squash", "pad"]


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

    A picture that is not square is cropped around its centre, squashed, or padded with white. Colours, depth and
    transparency are read as `flattened` does. Raises UsageError for what `check_picture` refuses.
    """
    check_picture(image)
    image = flattened(image)
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


def _resized(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    if size < 1:
        raise UsageError(f"a picture's size must be at least 1, got {size}")
    box, filter_ = (size, size), Image.Resampling.BICUBIC
    if resize == "crop":
        return ImageOps.fit(image, box, filter_)
    if resize == "pad":
        return ImageOps.pad(image, box, filter_, color=WHITE)
    return image.resize(box, filter_)
