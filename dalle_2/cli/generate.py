"""`dalle2 generate PROMPT...`: make pictures from prompts."""

from collections.abc import Iterator
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import Run
from dalle_2.cli.stage_progress import loading, stage_progress
from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation, GenerationSettings
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT, find_pipeline
from dalle_2.sampling.options import Threshold, TokenOptions
from dalle_2.sampling.sampler_names import NAMES, sampler_name
from dalle_2.text.prompt_files import prompts_from
from dalle_2.text.prompts import check_prompts


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What the pictures show.", show_default=False),
    ] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="FILE", help=r"More prompts, one a line, # for comments, \# for #; - is stdin."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=options.MOST, help="Pictures for each prompt.")] = 1,
    best_of: Annotated[
        int, typer.Option(min=1, max=options.MOST, help="Make so many for each, and keep those CLIP finds closest.")
    ] = 1,
    seed: options.Seed = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every stage.")] = None,
    prior_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the prior alone.")] = None,
    decoder_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the decoder alone.")] = None,
    upsampler_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the upsamplers alone.")] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"The way from noise to pictures: {', '.join(NAMES)}.")
    ] = None,
    prior_sampler: Annotated[str | None, typer.Option(metavar="NAME", help="That of the prior alone.")] = None,
    decoder_sampler: Annotated[str | None, typer.Option(metavar="NAME", help="That of the decoder alone.")] = None,
    upsampler_sampler: Annotated[str | None, typer.Option(metavar="NAME", help="That of the upsamplers alone.")] = None,
    eta: Annotated[float, typer.Option(help="Fresh noise in each step of ddim, from 0 to below 1.")] = 0.0,
    guidance: Annotated[float | None, typer.Option(min=0, help="How closely the decoder follows; 1 is off.")] = None,
    prior_guidance: Annotated[float | None, typer.Option(min=0, help="The same of the prior.")] = None,
    text_guidance: Annotated[
        float | None, typer.Option(min=0, help="Of the caption, in a decoder that reads captions.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the pictures should not show; needs guidance above 1.")
    ] = None,
    threshold: Annotated[
        Threshold | None, typer.Option(help="How the decoder's guesses are kept in range; dynamic for strong guidance.")
    ] = None,
    prior: options.PriorChoice = None,
    no_prior: Annotated[bool, typer.Option("--no-prior", help="Text embeddings go to the decoder.")] = False,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, max=options.MOST, help="Embeddings that the prior draws for a picture; the best is kept."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="How freely the autoregressive prior draws; 1 as trained, 0 the likeliest."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="It draws among so many likeliest tokens only.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="It draws among the likeliest that have this probability together."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, max=options.LONGEST, help="Side of the pictures; by default that of the last upsampler."),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Upsample in tiles of so many pixels a side, which takes less memory."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Pixels that neighbouring tiles share; by default an eighth of a tile.")
    ] = None,
    noise_level: options.NoiseLevel = None,
    pipeline: options.Pipeline = DEFAULT,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
    low_memory: options.LowMemory = False,
    compiled: options.Compiled = False,
    out: options.Out = GENERATIONS,
    format: options.PictureFormat = "png",
    grid: options.Sheet = False,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the files.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Make pictures from prompts.

    dalle2 generate "a red circle above a blue square" --n 4 --seed 7
    """
    # All that can be wrong without a model is found before torch is loaded, which takes seconds.
    wanted = check_prompts([*(prompts or []), *([] if prompts_file is None else prompts_from(prompts_file))])
    _check_counts(len(wanted), n, best_of)
    if not 0 <= eta < 1:
        raise UsageError(f"eta must be at least 0 and below 1, got {eta}: 0 is deterministic")
    if prior == "ar" and prior_sampler is not None:
        raise UsageError("an autoregressive prior draws token by token and takes no sampler: leave --prior-sampler out")
    samplers = _samplers(sampler, {"prior": prior_sampler, "decoder": decoder_sampler, "upsampler": upsampler_sampler})
    found = find_pipeline(pipeline)
    stage_steps = {"prior": prior_steps, "decoder": decoder_steps, "upsampler": upsampler_steps}
    settings = GenerationSettings(
        steps=steps,
        eta=eta,
        guidance=_given({"prior": prior_guidance, "decoder": guidance}),
        stage_steps=_given(stage_steps),
        samplers=samplers,
        use_prior=not no_prior,
        prior=prior,
        candidates=candidates,
        negative=check_prompts(negative, "negative prompt")[0] if negative is not None else None,
        text_guidance=text_guidance,
        thresholding=threshold,
        size=size,
        tile=tile,
        overlap=overlap,
        noise_level=noise_level,
        tokens=TokenOptions(temperature, top_k, top_p),
    )
    run = Run(out, format, keep_metadata=not no_metadata, grid=grid, quiet=quiet, as_json=as_json)
    _made(run, wanted, n, seed, settings, found, device, dtype, low_memory, compiled, best_of)
    if grid:
        run.sheet()
    run.close()


def _made(
    run: Run, prompts: list[str], n: int, seed: int | None, settings: GenerationSettings,
    pipeline: Path, device: str, dtype: str, low_memory: bool, compiled: bool, best_of: int,
) -> None:  # fmt: skip
    """Makes and saves the pictures batch by batch; with `best_of` all of a prompt, and then the best."""
    with loading(pipeline.name, run.watch, quiet=run.quiet):
        from dalle_2.inference.generate import generations, load_drawing, new_seed, plan_of, repeated
        from dalle_2.inference.prompt_doubts import prompt_warnings
        from dalle_2.models.dalle2 import DALLe2

        loaded = load_drawing(pipeline, device=device, dtype=dtype, low_memory=low_memory, compiled=compiled)
        if best_of > 1 and not isinstance(loaded, DALLe2):
            raise UsageError("GLIDE has no CLIP to choose the best by: leave --best-of out")
        said = [*prompts, settings.negative] if settings.negative else prompts
        plan, doubts = plan_of(loaded, settings), prompt_warnings(loaded, said)
    for doubt in doubts:
        typer.echo(f"dalle2: warning: {doubt}", err=True)
    listed = repeated(prompts, n * best_of)
    batches = ceil(len(listed) / loaded.micro_batch)
    totals = {name: stage.steps * batches for name, stage in plan.items()}
    first = new_seed() if seed is None else seed
    with stage_progress(totals, run.watch, quiet=run.quiet, compiled=compiled) as progress:
        made = generations(loaded, listed, first, settings, on_step=progress.step)
        if best_of > 1 and isinstance(loaded, DALLe2):
            made = _best(loaded, made, n, n * best_of)
        run.digits = max(run.digits, len(str(n * len(prompts) - 1)))
        run.save(made)


def _best(pipeline: Any, made: Iterator[Generation], keep: int, of: int) -> Iterator[Generation]:
    """The best pictures of each prompt, whose `of` pictures come in a row: only so many are in memory."""
    from dalle_2.inference.rerank import reranked

    while group := list(islice(made, of)):
        yield from reranked(pipeline, group, keep, of=of)


def _check_counts(prompts: int, n: int, best_of: int) -> None:
    """Raises UsageError for more pictures than can be held, or listed."""
    if best_of > 1 and n * best_of > options.MOST:
        raise UsageError(
            f"--n {n} of --best-of {best_of} are {n * best_of:,} pictures of a prompt to choose among: ask for at most "
            f"{options.MOST:,}"
        )
    if prompts * n * best_of > options.IN_ALL:
        raise UsageError(
            f"{prompts} prompts with {n * best_of:,} pictures each are more than {options.IN_ALL:,}: make several calls"
        )


def _samplers(every: str | None, own: dict[str, str | None]) -> dict[str, str]:
    """The sampler of each stage that is given one. Raises UsageError for a name that is none, with the nearest one."""
    wanted = _given({stage: name or every for stage, name in own.items()})
    return {stage: sampler_name(name) for stage, name in wanted.items()}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {stage: value for stage, value in values.items() if value is not None}
