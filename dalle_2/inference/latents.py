"""Pictures as the pair that fixes them, and back: an image embedding and the noise x_T (DALL·E 2 paper, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dalle_2.errors import UsageError
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
    pipeline: DALLe2,
    images: Sequence[Image.Image],
    steps: int | None = None,
    *,
    captions: Sequence[str] | None = None,
    on_step: OnStep | None = None,
) -> Latents:
    """The latents of pictures: CLIP's embedding of each, and the noise that DDIM inversion under it ends in.

    captions: for a decoder that reads them. Raises UsageError for no pictures.
    """
    if not len(images):
        raise UsageError("there is no picture to work on: give at least one")
    size = pipeline.micro_batch
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        z_img = pipeline.encode_images(part)
        told = captions[start : start + size] if captions is not None else None
        small = at_decoder_size(pipeline, part)
        parts.append(Latents(z_img, pipeline.invert(small, z_img, steps, captions=told, on_step=on_step)))
    return Latents(torch.cat([part.z_img for part in parts]), torch.cat([part.x_T for part in parts]))
