"""Any pictures through a pipeline's upsamplers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from dalle_2.errors import UsageError
from dalle_2.images import from_pil, to_pils
from dalle_2.inference.record import record
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.models.stages import StageSettings, named, settled
from dalle_2.models.upsampler import Upsampler


@dataclass(frozen=True, eq=False)
class Upscaled:
    """The index-th picture, enlarged, and how it was made."""

    index: int
    seed: int
    image: Image.Image
    metadata: dict[str, Any]


def input_size(pipeline: DALLe2) -> int:
    """The side in pixels that pictures are brought to first. Raises UsageError without an upsampler."""
    if not pipeline.upsamplers:
        raise UsageError(f"pipeline {pipeline.name or 'given'} has no upsampler: use one that has")
    return pipeline.upsamplers[0].config.low_res_size


def upscale_settings(
    pipeline: DALLe2,
    steps: int | None = None,
    eta: float = 0.0,
    guidance: float | None = None,
    sampler: str | None = None,
) -> dict[str, StageSettings]:
    """What each upsampler would run with. Raises UsageError for settings that don't fit it."""

    def settings(name: str, model: Upsampler) -> StageSettings:
        chosen = pipeline.sampler_of(name, model, sampler)
        return settled(name, model, pipeline.defaults, steps, eta, guidance, sampler=chosen)

    return {name: settings(name, model) for name, model in named(pipeline.upsamplers).items()}


def upscaled(
    pipeline: DALLe2,
    images: Sequence[Image.Image],
    seed: int,
    *,
    steps: int | None = None,
    eta: float = 0.0,
    guidance: float | None = None,
    sampler: str | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Upscaled]:
    """Each picture cropped to a square, shrunk or stretched to the upsampler's input, and enlarged.

    CLIP sees the picture as it came, so that it may know more than the small one shows. Picture k has seed + k.
    """
    size, plan = input_size(pipeline), upscale_settings(pipeline, steps, eta, guidance, sampler)
    for start in range(0, len(images), pipeline.micro_batch):
        part = list(images[start : start + pipeline.micro_batch])
        pictures = pipeline.upscale(
            torch.stack([from_pil(image, size) for image in part]),
            pipeline._encode_images(part),
            steps,
            eta,
            seeds=seed + start,
            guidance=guidance,
            sampler=sampler,
            on_step=on_step,
        )
        for k, image in enumerate(to_pils(pictures)):
            metadata = {"task": "upscale", "seed": seed + start + k, **record(pipeline, plan, image)}
            metadata |= {"from": f"{part[k].width}x{part[k].height}", "input": f"{size}x{size}"}
            yield Upscaled(start + k, seed + start + k, image, metadata)
