"""`dalle2 interpolate FIRST SECOND`: pictures between two pictures or two captions."""

from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.errors import DataError, UsageError
from dalle_2.paths import GENERATIONS, at_home
from dalle_2.pipelines.find import DEFAULT


def interpolate(
    first: Annotated[str, typer.Argument(help="A picture, or with --captions a caption.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    n: Annotated[int, typer.Option("--n", "-n", min=2, max=options.MOST, help="Pictures, both ends among them.")] = 8,
    captions: Annotated[bool, typer.Option("--captions", help="Both are captions.")] = False,
    fixed: Annotated[bool, typer.Option("--fixed-noise", help="One noise for all, not the pictures' own.")] = False,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
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
    """Draw the way from one picture to another, or from one caption to another.

    dalle2 interpolate cat.png dog.png --n 8 --grid
    """
    if not captions and prior is not None:
        raise UsageError("--prior is for captions, and these are pictures: leave it out, or say --captions")
    if captions and fixed:
        raise UsageError("--fixed-noise is for pictures: captions have one noise in any case")
    missing = [] if captions else [end for end in (first, second) if not at_home(end).exists()]
    if missing:
        raise DataError(f"there is no file {missing[0]}: if it is a caption, say --captions")

    def make(loaded: Any, chosen: int, on_step: Any) -> Any:
        from dalle_2.images import open_image
        from dalle_2.inference.interpolate import interpolate as between
        from dalle_2.inference.interpolate import interpolate_captions
        from dalle_2.inference.plans import EditSettings

        settings = EditSettings(steps=steps, guidance=guidance, prior=prior)
        if captions:
            return interpolate_captions(loaded, first, second, n, seed=chosen, settings=settings, on_step=on_step)
        noise: Any = "fixed" if fixed else "slerp"
        ends = open_image(at_home(first)), open_image(at_home(second))
        return between(loaded, *ends, n, noise=noise, seed=chosen, settings=settings, on_step=on_step)

    edit(
        "interpolation", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json, captions=[first, second] if captions else [],
    )  # fmt: skip
