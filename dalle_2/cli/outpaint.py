"""`dalle2 outpaint PICTURE CAPTION --right 128`: continue a picture beyond its borders."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT

Side = Annotated[int, typer.Option(min=0, max=options.LONGEST, help="Pixels to add on this side.")]


def outpaint(
    picture: Annotated[Path, typer.Argument(help="A picture of any size.", show_default=False)],
    caption: Annotated[str, typer.Argument(help="What each frame of the result shows.", show_default=False)],
    left: Side = 0,
    right: Side = 0,
    top: Side = 0,
    bottom: Side = 0,
    candidates: options.Candidates = None,
    steps: options.Steps = None,
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
    """Continue a picture beyond its borders; every pixel of it stays.

    dalle2 outpaint picture.png "a red circle and a blue star" --right 128. The picture is first brought to the size
    that the pipeline makes; a side grows by half of that at most.
    """

    if format == "jpg":
        typer.echo("dalle2: warning: a JPEG changes every pixel a little; a PNG keeps the kept ones", err=True)

    def say(number: int, total: int) -> None:
        typer.echo(f"frame {number} of {total}", err=True)

    def make(loaded: Any, first: int, on_step: Any) -> Any:
        from dalle_2.images import open_image
        from dalle_2.inference.inpaint import outpaint as continued
        from dalle_2.inference.plans import EditSettings

        yield continued(
            loaded, open_image(picture), caption, left=left, right=right, top=top, bottom=bottom, seed=first,
            candidates=candidates,
            settings=EditSettings(steps=steps, guidance=guidance, negative=negative, sampler=sampler, prior=prior),
            on_step=on_step, on_frame=None if quiet else say,
        )  # fmt: skip

    edit(
        "outpainting", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json, captions=[caption],
    )  # fmt: skip
