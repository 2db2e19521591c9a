"""Any pictures through a pipeline's upsamplers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.images import MAX_PIXELS, flattened, from_pil, to_pils
from dalle_2.inference.record import record
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.models.stages import StageSettings, named, upscaling
from dalle_2.models.upsampler import Upsampler
from dalle_2.scalars import plain_fields, plain_numbers


@dataclass(frozen=True, eq=False)
class Upscaled:
    """The index-th picture, enlarged, and how it was made."""

    index: int
    seed: int
    image: Image.Image
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Enlargement:
    """What will become of a picture: the upsamplers it goes through, by name, and its sizes before and after them, as
    (width, height) in pixels."""

    stages: tuple[str, ...]
    input: tuple[int, int]
    output: tuple[int, int]


@plain_fields
@dataclass(frozen=True)
class UpscaleSettings:
    """How pictures are enlarged; None is the pipeline's own default. The last four are as in `DALLe2.upscale`.

    size: the side of the result; of a whole picture the longer one. By default as large as the upsamplers go, and of a
    whole picture what one of them makes of it.
    """

    size: int | None = None
    steps: int | None = None
    eta: float = 0.0
    guidance: float | None = None
    noise_level: int | None = None
    tile: int | None = None
    overlap: int | None = None
    whole: bool = False
    sampler: str | None = None

    def plan(self, pipeline: DALLe2) -> dict[str, StageSettings]:
        """What each upsampler would run with. Raises UsageError for settings that don't fit it."""
        return upscaling(
            named(pipeline.upsamplers), pipeline.defaults, self.steps, self.eta, self.guidance,
            noise_level=self.noise_level, tile=self.tile, overlap=self.overlap,
            chosen=lambda name, model: pipeline.sampler_of(name, model, self.sampler),
        )  # fmt: skip

    def micro_batch(self, pipeline: DALLe2) -> int:
        """How many pictures are enlarged at a time: whole ones each by itself, as large as they may be."""
        return 1 if self.whole else pipeline.micro_batch


def enlargement(pipeline: DALLe2, image: Image.Image, settings: UpscaleSettings) -> Enlargement:
    """What will become of a picture of that size.

    It enters at the upsampler that takes the largest pictures of those it is large enough for, or at the first. Raises
    UsageError for a pipeline without upsamplers, a size that they can't make, and a whole picture that would become
    larger than any that is read here.
    """
    stages = named(pipeline.upsamplers)
    if not stages:
        raise UsageError(f"pipeline {pipeline.name or 'given'} has no upsampler: use one that has")
    enlarge = _whole if settings.whole else _square
    return enlarge(pipeline.name or "given", stages, image.size, settings.size)


@plain_numbers
def upscaled(
    pipeline: DALLe2,
    images: Sequence[Image.Image],
    seed: int,
    settings: UpscaleSettings | None = None,
    *,
    on_step: OnStep | None = None,
) -> Iterator[Upscaled]:
    """Each picture enlarged: cropped to a square and brought to the upsampler's input first, unless it is kept whole.

    CLIP sees the picture as it came, so that it may know more than the small one shows. Picture k has seed + k.
    Raises what `enlargement` raises, for any of the pictures before the first is enlarged.
    """
    settings = settings or UpscaleSettings()
    plan = settings.plan(pipeline)
    images = [flattened(image) for image in images]
    whither = [enlargement(pipeline, image, settings) for image in images]
    for rows in batches(whither, settings.micro_batch(pipeline)):
        part, way = [images[row] for row in rows], whither[rows[0]]
        pictures = pipeline.upscale(
            torch.stack([_input(image, way) for image in part]),
            pipeline._encode_images(part),
            settings.steps,
            settings.eta,
            seeds=[seed + row for row in rows],
            guidance=settings.guidance,
            sampler=settings.sampler,
            on_step=on_step,
            noise_level=settings.noise_level,
            tile=settings.tile,
            overlap=settings.overlap,
            whole=settings.whole,
            upsamplers=way.stages,
        )
        used = {name: plan[name] for name in way.stages}
        for row, came, image in zip(rows, part, to_pils(pictures), strict=True):
            metadata = {"task": "upscale", "seed": seed + row, **record(pipeline, used, image)}
            metadata |= {"from": f"{came.width}x{came.height}", "input": f"{way.input[0]}x{way.input[1]}"}
            yield Upscaled(row, seed + row, image, metadata)


def batches(whither: Sequence[Enlargement], most: int) -> Iterator[list[int]]:
    """The pictures by number, `most` at a time of those that stand side by side and go the same way."""
    for _, group in groupby(range(len(whither)), key=lambda row: whither[row]):
        rows = list(group)
        yield from (rows[start : start + most] for start in range(0, len(rows), most))


def _input(image: Image.Image, way: Enlargement) -> Float[Tensor, "3 h w"]:
    return from_pil(image) if image.size == way.input else from_pil(image, way.input[0])


Size = tuple[int, int]


def _square(pipeline: str, stages: dict[str, Upsampler], came: Size, size: int | None) -> Enlargement:
    """A square of one of the sizes that the upsamplers make."""
    made = {model.config.image_size: name for name, model in stages.items()}
    last = list(stages)[-1] if size is None else made.get(size)
    if last is None:
        raise UsageError(
            f"pipeline {pipeline} enlarges pictures to {_listed(made)} px, not to {size}: choose one of these sizes"
        )
    names = list(stages)[: list(stages).index(last) + 1]
    names = names[_entrance([stages[name] for name in names], came) :]
    low, high = stages[names[0]].config.low_res_size, stages[last].config.image_size
    return Enlargement(tuple(names), (low, low), (high, high))


def _whole(pipeline: str, stages: dict[str, Upsampler], came: Size, size: int | None) -> Enlargement:
    """The picture's own shape, times the factors of one upsampler or of several in a row."""
    models = list(stages.values())
    names = list(stages)[_entrance(models, came) :]
    factors = {count: prod(stages[name].config.scale for name in names[:count]) for count in range(1, len(names) + 1)}
    made = {max(came) * factor: count for count, factor in factors.items()}
    count = 1 if size is None else made.get(size)
    if count is None:
        raise UsageError(
            f"a whole picture of {came[0]} x {came[1]} px becomes {_listed(made)} px on its longer side with pipeline "
            f"{pipeline}, not {size}: choose one of these sizes"
        )
    output = (came[0] * factors[count], came[1] * factors[count])
    if prod(output) > MAX_PIXELS:
        raise UsageError(
            f"a whole picture of {came[0]} x {came[1]} px would become {output[0]} x {output[1]}, more than "
            f"{MAX_PIXELS:,} pixels: shrink it first"
        )
    return Enlargement(tuple(names[:count]), came, output)


def _entrance(models: Sequence[Upsampler], came: Size) -> int:
    """Where a picture enters, counted from 0: as late as its shorter side allows, since an earlier upsampler would have
    it shrunk first."""
    return max((k for k, model in enumerate(models) if model.config.low_res_size <= min(came)), default=0)


def _listed(sizes: dict[int, Any]) -> str:
    return " or ".join(map(str, sorted(sizes)))
