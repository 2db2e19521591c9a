"""`dalle2 variations PICTURE...`: other pictures of the same content and style."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT


def variations(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures of any size.", show_default=False)],
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=options.MOST, help="Variations of each picture.")] = 4,
    steps: options.Steps = None,
    eta: options.Eta = 0.8,
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
    """Draw variations of pictures: what CLIP sees in each stays, all the rest is drawn anew.

    dalle2 variations photo.png --n 4. With --eta 0 the picture itself comes back, as well as the decoder knows it.
    """

    def make(loaded: Any, first: int, on_step: Any) -> Any:
        from dalle_2.images import open_image
        from dalle_2.inference.plans import EditSettings
        from dalle_2.inference.variations import variations as vary

        settings = EditSettings(steps=steps, eta=eta, guidance=guidance)
        images = [open_image(picture) for picture in pictures]
        return vary(loaded, images, n, seed=first, settings=settings, on_step=on_step)

    edit(
        "variation", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json,
    )  # fmt: skip
