"""Pictures as the pair that fixes them, and back: an image embedding and the noise x_T (DALL·E 2 paper, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dalle_2.images import from_pil
from dalle_2.models.dalle2 import DALLe2, OnStep


@dataclass(frozen=True, eq=False)
class Latents:
    """The bipartite latent of pictures: what CLIP sees in them, and all that it doesn't."""

    z_img: Float[Tensor, "n d"]
    x_T: Float[Tensor, "n 3 h w"]


def at_decoder_size(pipeline: DALLe2, images: Sequence[Image.Image]) -> Float[Tensor, "n 3 s s"]:
    """The central squares of pictures, in [-1, 1], at the size that the decoder draws."""
    size = pipeline.decoder.config.image_size
    return torch.stack([from_pil(image, size) for image in images]).to(pipeline.device)


def encoded(
    pipeline: DALLe2, images: Sequence[Image.Image], steps: int | None = None, *, on_step: OnStep | None = None
) -> Latents:
    """The latents of pictures: CLIP's embedding of each, and the noise that DDIM inversion under it ends in."""
    z_img = pipeline._encode_images(list(images))
    return Latents(z_img, pipeline.invert(at_decoder_size(pipeline, images), z_img, steps, on_step=on_step))
