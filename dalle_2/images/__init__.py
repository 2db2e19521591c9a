"""Tensor <-> picture, opening whatever people call an image, and sheets of pictures.

Inside, pictures are float tensors in [-1, 1], (B, 3, H, W); outside, PIL pictures in 8-bit sRGB.
"""

from dalle_2.images.layers import Layers, flattened, layers, on_white
from dalle_2.images.lettering import lacking
from dalle_2.images.limits import MAX_PIXELS
from dalle_2.images.reading import open_image, open_layers, size_of
from dalle_2.images.sheet import grid
from dalle_2.images.tensors import Resize, check_picture, from_pil, to_pil, to_pils
from dalle_2.metadata import read_metadata, save_image

__all__ = [
    "MAX_PIXELS", "Layers", "Resize", "check_picture", "flattened", "from_pil", "grid", "lacking", "layers", "on_white",
    "open_image", "open_layers", "read_metadata", "save_image", "size_of", "to_pil", "to_pils",
]  # fmt: skip
