"""What every edit comes down to: pictures that the decoder draws from given latents, then the upsamplers.

An edit makes one `Plan` a picture; `draw` turns plans into finished pictures, batch by batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from dalle_2.config import Settings
from dalle_2.errors import UsageError
from dalle_2.images import to_pils
from dalle_2.inference.generation import Generation
from dalle_2.inference.record import record
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.models.decoder import Decoder, Known
from dalle_2.models.prior import Prior
from dalle_2.models.stages import StageSettings, named, settled, upscaling
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.options import Threshold

MANY_STEPS = 50


class EditSettings(Settings):
    """How the pictures of an edit are drawn; None is the pipeline's own default. steps to thresholding: of the decoder.

    negative: what pictures shall not show, for prior and decoder as far as they can. prior: which one, where an edit
    needs one. upsample: off for the decoder's small pictures.
    """

    steps: int | None = Field(None, ge=1)
    eta: float = Field(0.0, ge=0, lt=1)
    guidance: float | None = Field(None, ge=0)
    text_guidance: float | None = Field(None, ge=0)
    sampler: str | None = None
    thresholding: Threshold | None = None
    negative: str | None = None
    prior: Literal["diffusion", "ar"] | None = None
    upsample: bool = True


def in_steps(settings: EditSettings | None, decoder: Decoder) -> EditSettings:
    """The settings, with many steps unless they say how many: noising part of the way needs them."""
    settings = settings or EditSettings()
    steps = min(MANY_STEPS, decoder.noise_scheduler.T)
    return settings if settings.steps else settings.model_copy(update={"steps": steps})


def inverting(settings: EditSettings | None, decoder: Decoder) -> EditSettings:
    """The settings of an edit that inverts first, unless they say otherwise: many steps of DDIM, and no guidance.

    Inversion is DDIM's, without guidance, and only a way down like the way up gives the picture back.
    """
    settings = in_steps(settings, decoder)
    guidance = 1.0 if settings.guidance is None else settings.guidance
    return settings.model_copy(update={"guidance": guidance, "sampler": settings.sampler or DDIMSampler.name})


def embedded(
    pipeline: DALLe2,
    prompts: Sequence[str],
    settings: EditSettings | None,
    *,
    seeds: Sequence[int] | int,
    candidates: int | None = None,
    on_step: OnStep | None = None,
    **drawing_over: Any,
) -> Float[Tensor, "n d"]:
    """Image embeddings for prompts, by the prior that the settings name and away from their negative prompt.

    drawing_over: `start`, `strength` and `steps` of `DALLe2.embed`.
    """
    settings = settings or EditSettings()
    return pipeline.embed(
        prompts, seeds=seeds, prior=settings.prior, candidates=candidates, negative=settings.negative, on_step=on_step,
        **drawing_over,
    )  # fmt: skip


def steerable_prior(pipeline: DALLe2, name: Literal["diffusion", "ar"] | None = None) -> Prior | None:
    """The diffusion prior of a pipeline whose drafts can be looked at while it draws; None where either is missing.

    Raises UsageError as `Parts.first_prior` does.
    """
    prior = pipeline.first_prior(name)
    return prior if isinstance(prior, Prior) and pipeline.decoder.draft is not None else None


@dataclass(frozen=True, eq=False)
class Plan:
    """One picture to be drawn.

    start: x_T, or with `strength` the clean picture that noise is laid over; None for noise of the seed. caption: for
    a decoder that reads captions. known, hole: what the picture keeps, and True where it doesn't.
    """

    z_img: Float[Tensor, "d"]
    seed: int
    start: Float[Tensor, "3 h w"] | None = None
    strength: float | None = None
    caption: str | None = None
    known: Float[Tensor, "3 h w"] | None = None
    hole: Bool[Tensor, "1 h w"] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def draw(
    pipeline: DALLe2,
    plans: Sequence[Plan],
    task: str,
    settings: EditSettings | None = None,
    *,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """The pictures of some plans, in their order. task: how their metadata calls the edit.

    Plans of one call have the same parts: all of them a start or none, and so on. Raises UsageError for no plans, and
    for settings that don't fit the pipeline, before anything is drawn.
    """
    if not plans:
        raise UsageError(f"there is nothing to draw for this {task}: give at least one picture")
    settings = settings or EditSettings()
    run = stages_of(pipeline, settings, fills=plans[0].hole is not None)
    return _drawn(pipeline, plans, task, settings, run, on_step)


def stages_of(pipeline: DALLe2, settings: EditSettings, *, fills: bool = False) -> dict[str, StageSettings]:
    """What each stage of an edit does. fills: whether it is one of a picture with a hole.

    Raises UsageError for settings that don't fit the pipeline.
    """
    model = pipeline.painter if fills else pipeline.decoder
    chosen = pipeline.sampler_of("decoder", model, settings.sampler)
    run = settled("decoder", model, pipeline.defaults, settings.steps, settings.eta, settings.guidance, sampler=chosen)
    large = upscaling(named(pipeline.upsamplers), pipeline.defaults) if settings.upsample else {}
    drawing = replace(run, text_guidance=settings.text_guidance, thresholding=settings.thresholding)
    return {"decoder": drawing, **large}


def _drawn(
    pipeline: DALLe2,
    plans: Sequence[Plan],
    task: str,
    settings: EditSettings,
    run: dict[str, StageSettings],
    on_step: OnStep | None,
) -> Iterator[Generation]:
    for first in range(0, len(plans), pipeline.micro_batch):
        some = plans[first : first + pipeline.micro_batch]
        seeds, z = [plan.seed for plan in some], torch.stack([plan.z_img for plan in some])
        captions = [plan.caption for plan in some if plan.caption is not None]
        pictures = pipeline.decode(
            z, settings.steps, settings.eta, seeds=seeds, guidance=settings.guidance,
            captions=captions or None, negative=settings.negative if captions else None,
            text_guidance=settings.text_guidance, thresholding=settings.thresholding, sampler=settings.sampler,
            start=_stacked([plan.start for plan in some]), strength=some[0].strength,
            known=_known(some), on_step=on_step,
        )  # fmt: skip
        if settings.upsample and pipeline.upsamplers:
            pictures = pipeline.upscale(pictures, z, seeds=seeds, on_step=on_step)
        for k, (plan, image) in enumerate(zip(some, to_pils(pictures), strict=True)):
            metadata = {"task": task, "seed": plan.seed, **plan.metadata, **record(pipeline, run, image)}
            metadata |= {"negative": settings.negative} if settings.negative else {}
            yield Generation(first + k, plan.caption or "", plan.seed, image, metadata)


def _known(plans: Sequence[Plan]) -> Known | None:
    picture, hole = _stacked([plan.known for plan in plans]), _stacked([plan.hole for plan in plans])
    return None if picture is None or hole is None else Known(picture, hole)


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    given = [value for value in values if value is not None]
    return torch.stack(given) if given else None
