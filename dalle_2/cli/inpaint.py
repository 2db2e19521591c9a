"""`dalle2 inpaint PICTURE CAPTION --mask MASK`: paint into a picture."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.inference.generation import MaskMeans
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT


def inpaint(
    picture: Annotated[Path, typer.Argument(help="A picture; transparent parts are painted.", show_default=False)],
    caption: Annotated[str, typer.Argument(help="What the whole picture shall show.", show_default=False)],
    mask: Annotated[Path | None, typer.Option(help="A picture as large, white or erased where to paint.")] = None,
    mask_means: Annotated[
        MaskMeans,
        typer.Option(help="What a mask with transparency paints: transparent, white, or what it looks like."),
    ] = "auto",
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=options.MOST, help="Pictures.")] = 1,
    candidates: options.Candidates = None,
    steps: options.Steps = None,
    eta: options.Eta = 0.0,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    sampler: options.Sampler = None,
    prior: options.PriorChoice = None,
    seed: options.Seed = None,
    pipeline: options.Pipeline = DEFAULT,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
    low_memory: options.LowMemory = False,
    compiled: options.Compiled = False,
    out: options.Out = GENERATIONS,
    format: options.PictureFormat = "png",
    grid: options.Sheet = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Paint what the caption says into a part of a picture; every other pixel stays as it is.

    dalle2 inpaint picture.png "a red circle left of a blue star" --mask mask.png. A picture that is no square is cut to
    its middle one and brought to the size that the pipeline makes, before anything else. A mask without transparency
    paints where it is white. One with transparency paints what is transparent, if the rest is a picture or black, and
    what is white, if the rest is white: --mask-means settles it.
    """

    if format == "jpg":
        typer.echo("dalle2: warning: a JPEG changes every pixel a little; a PNG keeps the kept ones", err=True)

    def make(loaded: Any, first: int, on_step: Any) -> Any:
        from dalle_2.inference.holes import open_holed
        from dalle_2.inference.inpaint import inpaint as painted
        from dalle_2.inference.plans import EditSettings

        settings = EditSettings(
            steps=steps, eta=eta, guidance=guidance, negative=negative, sampler=sampler, prior=prior
        )
        holed = open_holed(picture, mask, loaded.size, means=mask_means)
        if holed.understood and not quiet:
            typer.echo(_understood(holed.understood, guessed=mask is not None and mask_means == "auto"), err=True)
        return painted(loaded, holed, caption, n, seed=first, candidates=candidates, settings=settings, on_step=on_step)

    edit(
        "inpainting", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json, captions=[caption],
    )  # fmt: skip


def _understood(sentence: str, *, guessed: bool) -> str:
    return f"{sentence}; --mask-means transparent or white settles it" if guessed else sentence
