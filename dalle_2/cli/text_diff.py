"""`dalle2 text-diff PICTURE --from CAPTION --to CAPTION`: a picture changed by the difference of two captions."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT


def text_diff(
    picture: Annotated[Path, typer.Argument(help="A picture of any size.", show_default=False)],
    source: Annotated[str, typer.Option("--from", help="What the picture shows.", show_default=False)],
    target: Annotated[str, typer.Option("--to", help="What it shall show.", show_default=False)],
    n: Annotated[
        int, typer.Option("--n", "-n", min=1, max=options.MOST, help="Pictures on the way, the last at theta.")
    ] = 6,
    theta: Annotated[
        float | None, typer.Option(help="How far to go, above 0 and at most 1; by default 0.5 by direction, else 1.")
    ] = None,
    by: Annotated[
        Literal["direction", "prior"] | None,
        typer.Option(help="The paper's direction between the captions, or the prior, which is the default if it can."),
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
    """Change a picture by what one caption says and another didn't.

    dalle2 text-diff picture.png --from "a red circle" --to "a blue circle" --grid
    """

    def make(loaded: Any, first: int, on_step: Any) -> Any:
        from dalle_2.images import open_image
        from dalle_2.inference.plans import EditSettings
        from dalle_2.inference.text_diff import text_diff as changed

        settings = EditSettings(steps=steps, guidance=guidance)
        image = open_image(picture)
        return changed(
            loaded, image, source, target, n, theta=theta, by=by, seed=first, settings=settings, on_step=on_step
        )

    edit(
        "text-diff", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json, captions=[source, target],
    )  # fmt: skip
