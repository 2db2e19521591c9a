"""The stages of a run: their names, their settings, their seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from pydantic import Field

from dalle_2.config import Settings
from dalle_2.errors import UsageError
from dalle_2.models.autoregressive_prior import AutoregressivePrior
from dalle_2.models.decoder import require_eta
from dalle_2.models.diffusion import Diffusion
from dalle_2.models.upsampler import Upsampler
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.guidance import Threshold
from dalle_2.sampling.options import TokenOptions
from dalle_2.sampling.sampler import Sampler
from dalle_2.sampling.sampler_names import SamplerName
from dalle_2.scalars import plain_numbers

V = TypeVar("V")
MOST_CANDIDATES = 1_000  # they are drawn at once: more would fill the memory and choose hardly better
AUTOREGRESSIVE = "autoregressive"  # stands where a diffusion stage has the name of its sampler


class StageDefaults(Settings):
    """Steps and guidance of a pipeline, by stage ("prior", "upsampler-256"), where they differ from its parts', and
    samplers where they are not DDIM."""

    steps: dict[str, int] = Field(default_factory=dict)
    guidance: dict[str, float] = Field(default_factory=dict)
    sampler: dict[str, SamplerName] = Field(default_factory=dict)


@dataclass(frozen=True)
class StageSettings:
    """What one stage of a run is sampled with. candidates: of the prior, see `PriorConfig`; 1 elsewhere.

    sampler: a name of `dalle_2.sampling.samplers.SAMPLERS`. text_guidance: of a decoder that reads captions, None for
    the same as its guidance. thresholding: None for the part's own.
    noise_level, tile, overlap: of an upsampler, see `Upsampler.sample`; None for what it does by itself.
    tokens: how an autoregressive prior draws.
    """

    steps: int
    guidance: float
    eta: float
    candidates: int = 1
    sampler: str = DDIMSampler.name
    text_guidance: float | None = None
    thresholding: Threshold | None = None
    noise_level: int | None = None
    tile: int | None = None
    overlap: int | None = None
    tokens: TokenOptions | None = None


def up_to(last: str | None, pictures: Mapping[str, V]) -> dict[str, V]:
    """The stages that make pictures, in order, as far as the one named; None for all of them.

    Raises UsageError for a name that none of them has.
    """
    names = list(pictures)
    if last is not None and last not in pictures:
        raise UsageError(f"no stage {last!r} makes pictures here: say {' or '.join(names)}")
    return {name: pictures[name] for name in (names if last is None else names[: names.index(last) + 1])}


def settled(
    name: str,
    model: Diffusion,
    defaults: StageDefaults,
    steps: int | None,
    eta: float,
    guidance: float | None,
    candidates: int | None = None,
    sampler: Sampler | None = None,
) -> StageSettings:
    """The caller's wish, else the pipeline's default, else the part's own. candidates: None for the part's own.

    sampler: by default DDIM.

    Raises UsageError for steps outside 1 ... T, eta outside [0, 1), guidance below 0, fewer candidates than one, and a
    sampler that doesn't take this eta or doesn't fit the model.
    """
    require_eta(eta)
    own, T = model.settings, model.noise_scheduler.T
    steps = of_stage(defaults.steps, name, model.default_steps) if steps is None else steps
    guidance = of_stage(defaults.guidance, name, own.guidance) if guidance is None else guidance
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= T:
        raise UsageError(f"steps must be a whole number from 1 to {T} for the {name}, got {steps}")
    guidance = _checked_guidance(name, guidance)
    wanted = checked_candidates(getattr(own, "candidates", 1) if candidates is None else candidates)
    sampler = sampler or DDIMSampler(model.noise_scheduler)
    sampler.check(model, eta)
    return StageSettings(steps, guidance, eta, wanted, sampler.name)


def token_by_token(
    model: AutoregressivePrior,
    defaults: StageDefaults,
    steps: int | None = None,
    guidance: float | None = None,
    candidates: int | None = None,
    tokens: TokenOptions | None = None,
) -> StageSettings:
    """The settings of an autoregressive prior, which takes a step a component and no sampler.

    Raises UsageError for another number of steps, guidance below 0, fewer candidates than one, and as `TokenSampler`
    does.
    """
    if steps not in (None, model.components):
        raise UsageError(f"an autoregressive prior takes {model.components} steps, one a component, got {steps}")
    # A pipeline's default for "prior" is the diffusion prior's.
    scale = defaults.guidance.get("prior-ar", model.config.guidance) if guidance is None else guidance
    scale = _checked_guidance("prior", scale)
    wanted = checked_candidates(model.config.candidates if candidates is None else candidates)
    tokens = tokens or TokenOptions()
    model.token_sampler(tokens)
    return StageSettings(model.components, scale, 0.0, wanted, AUTOREGRESSIVE, tokens=tokens)


def refuse_tokens(tokens: TokenOptions | None) -> None:
    """Raises UsageError where a diffusion prior, or none, is told how to draw tokens."""
    for name in tokens.given if tokens else ():
        raise UsageError(f"{name} is for an autoregressive prior: leave it out, or take that prior, 'ar'")


def _checked_guidance(name: str, guidance: float) -> float:
    if not 0 <= guidance < float("inf"):
        raise UsageError(f"guidance must be a number from 0 up for the {name}, got {guidance}; 1 is off")
    return float(guidance)


def checked_candidates(wanted: int) -> int:
    """The number of embeddings to choose among. Raises UsageError outside 1 ... MOST_CANDIDATES."""
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= MOST_CANDIDATES:
        raise UsageError(f"candidates must be a whole number from 1 to {MOST_CANDIDATES}, got {wanted}; 1 is off")
    return wanted


def upsampled(
    run: StageSettings, upsampler: Upsampler, noise_level: int | None, tile: int | None, overlap: int | None
) -> StageSettings:
    """The settings of a stage with what only an upsampler has. Raises UsageError for what doesn't fit it."""
    upsampler.tiling(tile, overlap)
    level = upsampler.chosen_level(noise_level) if upsampler.config.noise_levels else None
    return replace(run, noise_level=level, tile=tile, overlap=overlap)


def check_levels(models: Iterable[Diffusion | AutoregressivePrior], noise_level: int | None) -> None:
    """Raises UsageError for a noise level where no upsampler of a run has any."""
    if noise_level is not None and not any(getattr(model.settings, "noise_levels", 0) for model in models):
        raise UsageError("no upsampler of this run was trained with noise levels: leave noise_level out")


def upscaling(
    upsamplers: Mapping[str, Upsampler],
    defaults: StageDefaults,
    steps: int | None = None,
    eta: float = 0.0,
    guidance: float | None = None,
    *,
    noise_level: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    only: Sequence[str] | None = None,
    chosen: Callable[[str, Upsampler], Sampler] | None = None,
) -> dict[str, StageSettings]:
    """What each upsampler, or each of those named in `only`, is run with, in order. chosen: the sampler of one.

    Raises UsageError for a name that is none of theirs, and for settings that don't fit one of them.
    """
    wrong = [name for name in only or () if name not in upsamplers]
    if wrong:
        raise UsageError(f"this pipeline has no upsampler {wrong[0]!r}: it has {', '.join(upsamplers)}")
    used = {name: model for name, model in upsamplers.items() if only is None or name in only}
    check_levels(used.values(), noise_level)
    plain = {
        name: settled(name, model, defaults, steps, eta, guidance, sampler=chosen(name, model) if chosen else None)
        for name, model in used.items()
    }
    return {name: upsampled(run, upsamplers[name], noise_level, tile, overlap) for name, run in plain.items()}


def of_stage(values: Mapping[str, V], stage: str, otherwise: V) -> V:
    """The value for a stage: under its name, else under its kind ("upsampler" stands for all of them)."""
    return values.get(stage, values.get(stage.partition("-")[0], otherwise))


def named(upsamplers: Sequence[Upsampler]) -> dict[str, Upsampler]:
    """Upsamplers by their stage's name, "upsampler-256" for one that makes pictures of 256 px."""
    return {f"upsampler-{upsampler.config.image_size}": upsampler for upsampler in upsamplers}


@plain_numbers
def seed_rows(seeds: Sequence[int] | int | None, count: int) -> list[int]:
    """A seed for each of `count` pictures: the given ones, or seed, seed + 1, ..., or new ones.

    Raises UsageError for another number of seeds than pictures.
    """
    if seeds is None:
        return torch.randint(2**32, (count,), device="cpu").tolist()
    rows = [seeds + k for k in range(count)] if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if len(rows) != count:
        raise UsageError(f"got {len(rows)} seeds for {count} pictures: give one a picture, or the first only")
    return rows
