"""`dalle2 probe PICTURE --write WORD --labels ...`: a typographic attack on CLIP."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.run import edit
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT


def probe(
    picture: Annotated[Path, typer.Argument(help="A picture of any size.", show_default=False)],
    word: Annotated[str, typer.Option("--write", help="The word to write on it.", show_default=False)],
    labels: Annotated[str, typer.Option(help="What CLIP chooses among, with commas.", show_default=False)],
    n: Annotated[
        int, typer.Option("--n", "-n", min=1, max=options.MOST, help="Variations of the picture with the word.")
    ] = 3,
    steps: options.Steps = None,
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
    """Write a word on a picture, ask CLIP what it shows before and after, and draw variations of the result.

    dalle2 probe apple.png --write ipod --labels "an apple,an ipod"
    """
    named = [label.strip() for label in labels.split(",")]

    def make(loaded: Any, first: int, on_step: Any) -> Any:
        from dalle_2.evaluation.typographic import probe as probed
        from dalle_2.images import open_image
        from dalle_2.inference.generation import Generation
        from dalle_2.inference.plans import EditSettings, inverting, stages_of
        from dalle_2.inference.variations import FRESH, variations

        settings = EditSettings(steps=steps, eta=FRESH)
        stages_of(loaded, inverting(settings, loaded.decoder))  # what doesn't fit is refused before CLIP is asked
        found = probed(loaded, open_image(picture), word, named)
        for label, before, after in zip(found.labels, found.before, found.after, strict=True):
            typer.echo(f"{label}: {before:.1%} before, {after:.1%} with {word!r} on it", err=True)
        said: dict[str, Any] = {"task": "typographic attack", "word": word, "labels": list(found.labels)}
        said |= {"before": list(found.before), "after": list(found.after)}
        varied = variations(loaded, [found.attacked], n, seed=first, settings=settings, on_step=on_step)
        yield Generation(0, word, first, found.attacked, said)
        for made in varied:
            yield Generation(made.index + 1, word, made.seed, made.image, made.metadata)

    edit(
        "probe", pipeline, make, seed=seed, device=device, dtype=dtype,
        low_memory=low_memory, compiled=compiled,
        out=out, format=format, grid=grid, quiet=quiet, as_json=as_json, captions=named,
    )  # fmt: skip
