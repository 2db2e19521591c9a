"""`dalle2 upscale PICTURE...`: enlarge pictures with a pipeline's upsamplers."""

import json
import time
from math import ceil
from pathlib import Path
from typing import Annotated

import typer

from dalle_2.cli.stage_progress import loading, stage_progress
from dalle_2.inference.saving import Format, output_folder, save_new
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT, find_pipeline
from dalle_2.sampling.sampler_names import NAMES, sampler_name


def upscale(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures of any size.", show_default=False)],
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first picture, the next has one more; random by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every upsampler.")] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"How it goes from noise to pictures: {', '.join(NAMES)}.")
    ] = None,
    pipeline: Annotated[str, typer.Option(help="A shipped name, a folder, or a hub id.")] = DEFAULT,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = GENERATIONS,
    format: Annotated[Format, typer.Option(help="Picture format.")] = "png",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line a picture.")] = False,
) -> None:
    """Enlarge pictures with a pipeline's upsampler.

    A picture is first cropped to a square and brought to the size that the upsampler takes, 64 pixels a
    side in shapes-tiny: what that is too small to show is lost.
    """
    begun = time.monotonic()
    if sampler is not None:
        sampler_name(sampler)
    found = find_pipeline(pipeline)
    folder = output_folder(out)

    with loading(found.name, quiet=quiet):
        from dalle_2.images import open_image
        from dalle_2.inference.generate import new_seed
        from dalle_2.inference.upscale import input_size, upscale_settings, upscaled
        from dalle_2.pipelines.folder import load

        images = [open_image(picture) for picture in pictures]
        loaded = load(found, device=device, dtype=dtype)
        size, plan = input_size(loaded), upscale_settings(loaded, steps, sampler=sampler)
    for picture, image in zip(pictures, images, strict=True):
        if image.size != (size, size):
            was = f"{image.width} x {image.height}"
            _note(f"{picture} is {was}: cropped and resized to {size} x {size} first", quiet)
    batches = ceil(len(images) / loaded.micro_batch)
    totals = {name: run.steps * batches for name, run in plan.items()}
    first = new_seed() if seed is None else seed
    with stage_progress(totals, quiet=quiet) as progress:
        for made in upscaled(loaded, images, first, steps=steps, sampler=sampler, on_step=progress.step):
            stem = f"{pictures[made.index].stem[:100]}-{made.image.width}px"
            path = save_new(made.image, folder, stem, format, made.metadata)
            if as_json:
                typer.echo(json.dumps({"file": str(path), **made.metadata}, ensure_ascii=False))
            elif not quiet:
                typer.echo(f"{path}  seed {made.seed}")
    count = f"{len(images)} picture{'' if len(images) == 1 else 's'}"
    _note(f"{count} in {folder.resolve()} ({time.monotonic() - begun:.1f} s)", quiet)


def _note(sentence: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(sentence, err=True)
