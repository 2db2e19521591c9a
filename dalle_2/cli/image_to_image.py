"""`dalle2 image-to-image PICTURE CAPTION`: a picture drawn over."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT


def image_to_image(
    picture: Annotated[Path, typer.Argument(help="A picture of any size.", show_default=False)],
    caption: Annotated[str, typer.Argument(help="What the result shows.", show_default=False)],
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=options.MOST, help="Pictures.")] = 1,
    strength: Annotated[float, typer.Option(help="How much is drawn over, above 0 and at most 1.")] = 0.7,
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
    """Draw over a picture: noise is laid on it, and taken away towards the caption.

    dalle2 image-to-image sketch.png "a red circle above a blue square" --strength 0.6
    """

    def make(loaded: Any, first: int, on_step: Any) -> Any:
        from dalle_2.images import open_image
        from dalle_2.inference.image_to_image import image_to_image as drawn_over
        from dalle_2.inference.plans import EditSettings

        settings = EditSettings(
            steps=steps, eta=eta, guidance=guidance, negative=negative, sampler=sampler, prior=prior
        )
        image = open_image(picture)
        return drawn_over(loaded, image, caption, n, strength=strength, seed=first, settings=settings, on_step=on_step)

    edit(
        "image-to-image", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json, captions=[caption],
    )  # fmt: skip
