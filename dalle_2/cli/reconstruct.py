"""`dalle2 reconstruct PICTURE`: a picture from the first directions of its embedding."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.errors import UsageError
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT


def reconstruct(
    picture: Annotated[Path, typer.Argument(help="A picture of any size.", show_default=False)],
    directions: Annotated[
        str | None, typer.Option(help="How many principal directions, with commas; by default 2, 4, 8 and so on.")
    ] = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
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
    """Draw a picture again from more and more principal directions of its image embedding.

    dalle2 reconstruct picture.png --directions 2,8,32 --grid
    """
    counts = None if directions is None else [numbered(word) for word in directions.split(",")]

    def make(loaded: Any, first: int, on_step: Any) -> Any:
        from dalle_2.images import open_image
        from dalle_2.inference.plans import EditSettings
        from dalle_2.inference.reconstruct import reconstructions

        settings = EditSettings(steps=steps, guidance=guidance)
        return reconstructions(loaded, open_image(picture), counts, seed=first, settings=settings, on_step=on_step)

    edit(
        "reconstruction", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json,
    )  # fmt: skip


def numbered(word: str) -> int:
    """A whole number. Raises UsageError for anything else."""
    try:
        return int(word)
    except ValueError:
        raise UsageError(f"directions are whole numbers with commas between, such as 2,8,32, got {word!r}") from None
