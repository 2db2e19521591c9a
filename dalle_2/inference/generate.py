"""Prompts to finished pictures, batch by batch, each with the record of how it was made."""

import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.images import to_pils
from dalle_2.inference.generation import Generation, GenerationSettings
from dalle_2.inference.prompt_doubts import prompt_warnings
from dalle_2.inference.record import record
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.models.glide import Glide
from dalle_2.models.stages import StageSettings
from dalle_2.pipelines.find import DEFAULT, check_draws, find_pipeline, holds_glide
from dalle_2.pipelines.folder import load
from dalle_2.pipelines.glide import load_glide
from dalle_2.scalars import plain_numbers
from dalle_2.text.prompts import Prompts, check_prompts

SEEDS = 2**32
# Settings that only an unCLIP has a use for.
UNCLIP = (
    "use_prior", "prior", "candidates", "text_guidance", "thresholding", "noise_level", "tile", "overlap", "tokens",
)  # fmt: skip


@plain_numbers
def generate(
    prompts: Prompts,
    pipeline: str | os.PathLike[str] | DALLe2 | Glide = DEFAULT,
    *,
    n: int = 1,
    seed: int | None = None,
    settings: GenerationSettings | None = None,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """`n` pictures for each prompt, the pictures of a prompt side by side; a lone string is one prompt.

    Warns of words that the pipeline never saw. Raises what `dalle_2.load` and `DALLe2.generate` raise.
    """
    listed = check_prompts(prompts)
    loaded = pipeline if isinstance(pipeline, DALLe2 | Glide) else load_drawing(pipeline)
    for warning in prompt_warnings(loaded, listed):
        warnings.warn(warning, stacklevel=2)
    made = generations(loaded, repeated(listed, n), seed, settings or GenerationSettings(), on_step=on_step)
    return [generation.image for generation in made]


def load_drawing(
    source: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto", low_memory: bool = False,
    compiled: bool = False,
) -> DALLe2 | Glide:  # fmt: skip
    """What draws pictures of prompts: a pipeline that `dalle_2.load` knows, or GLIDE in a folder.

    Raises UsageError for low_memory and compiled with GLIDE, and for published weights that make no pictures.
    """
    check_draws(source)
    folder = find_pipeline(source)
    if not holds_glide(folder):
        return load(folder, device=device, dtype=dtype, low_memory=low_memory, compiled=compiled)
    if low_memory or compiled:
        raise UsageError("GLIDE knows neither --low-memory nor --compile: leave them out")
    return load_glide(folder, device=device, dtype=dtype)


@plain_numbers
def generations(
    pipeline: DALLe2 | Glide,
    prompts: Sequence[str],
    seed: int | None = None,
    settings: GenerationSettings | None = None,
    *,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """One picture a prompt, as each micro-batch is done; picture k has seed + k, by default of a new seed."""
    settings = settings or GenerationSettings()
    plan = plan_of(pipeline, settings)
    first = new_seed() if seed is None else seed
    size = settings.micro_batch or pipeline.micro_batch
    for start in range(0, len(prompts), size):
        part = list(prompts[start : start + size])
        pictures = _pictures(pipeline, part, first + start, settings, on_step)
        for k, image in enumerate(to_pils(pictures)):
            metadata = {"prompt": part[k], "seed": first + start + k, **record(pipeline, plan, image)}
            metadata |= {"negative": settings.negative} if settings.negative else {}
            yield Generation(start + k, part[k], first + start + k, image, metadata)


def plan_of(pipeline: DALLe2 | Glide, settings: GenerationSettings) -> dict[str, StageSettings]:
    """What each stage of a run will do. Loads the parts; raises UsageError for what doesn't fit them."""
    return pipeline.settings(**_arguments(pipeline, settings))


def _arguments(pipeline: DALLe2 | Glide, settings: GenerationSettings) -> dict[str, Any]:
    """What planning a run and running it are both told. Raises UsageError for what GLIDE has no use for."""
    given = {name: getattr(settings, name) for name in ("steps", "eta", "guidance", "stage_steps")}
    given |= {"sampler": settings.samplers, "last_stage": last_stage(pipeline, settings.size)}
    own = {name: getattr(settings, name) for name in UNCLIP}
    if isinstance(pipeline, DALLe2):
        return given | own
    for name, value in own.items():
        if value != GenerationSettings.model_fields[name].default:
            raise UsageError(f"GLIDE draws from the caption alone and takes no {name}: leave it out, or use an unCLIP")
    samplers = {stage: name for stage, name in settings.samplers.items() if stage != "prior"}
    return given | {"sampler": samplers}


def last_stage(pipeline: DALLe2 | Glide, size: int | None) -> str | None:
    """The stage whose pictures have that size; None for the last of all.

    Raises UsageError for a size that no stage makes, naming those that there are.
    """
    if size is None:
        return None
    stages: dict[str, Any]
    stages = {**(pipeline._planned_stages(use_prior=False) if isinstance(pipeline, DALLe2) else pipeline.stages())}
    sizes: dict[int, str] = {model.config.image_size: name for name, model in stages.items()}
    if size not in sizes:
        raise UsageError(
            f"pipeline {pipeline.name or 'given'} makes pictures of {' or '.join(map(str, sizes))} px, not of {size}: "
            "choose one of these sizes"
        )
    return sizes[size]


def repeated(prompts: Sequence[str], n: int) -> list[str]:
    """Each prompt `n` times in a row."""
    return [prompt for prompt in prompts for _ in range(n)]


def new_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(SEEDS)


def _pictures(
    pipeline: DALLe2 | Glide, prompts: list[str], seed: int, settings: GenerationSettings, on_step: OnStep | None
) -> Float[Tensor, "n 3 h w"]:
    return pipeline.generate(
        prompts,
        seeds=seed,
        negative=settings.negative,
        micro_batch=len(prompts),
        on_step=on_step,
        **_arguments(pipeline, settings),
    )
