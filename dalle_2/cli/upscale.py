"""`dalle2 upscale PICTURE...`: enlarge pictures with a pipeline's upsamplers."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from dalle_2.cli import options
from dalle_2.cli.stage_progress import loading, stage_progress
from dalle_2.cli.stopwatch import Stopwatch
from dalle_2.cli.streams import say_json
from dalle_2.inference.saving import folder_name, output_folder, save_new
from dalle_2.paths import GENERATIONS, shortened
from dalle_2.pipelines.find import DEFAULT, find_pipeline
from dalle_2.sampling.sampler_names import NAMES, sampler_name


def upscale(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures of any size.", show_default=False)],
    size: Annotated[
        int | None,
        typer.Option(min=1, max=options.LONGEST, help="Side of the result; by default as large as the upsamplers go."),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Keep a picture's shape and size; --size is then of its longer side.")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Make large pictures of tiles of so many pixels a side, which takes less memory."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Pixels that neighbouring tiles share; by default an eighth of a tile.")
    ] = None,
    noise_level: options.NoiseLevel = None,
    seed: options.Seed = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every upsampler.")] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"How it goes from noise to pictures: {', '.join(NAMES)}.")
    ] = None,
    pipeline: options.Pipeline = DEFAULT,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
    low_memory: options.LowMemory = False,
    compiled: options.Compiled = False,
    out: options.Out = GENERATIONS,
    format: options.PictureFormat = "png",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Enlarge pictures with a pipeline's upsamplers.

    A picture is first cropped to a square and brought to the size that the upsampler takes, 64 pixels a
    side in shapes-tiny: what that is too small to show is lost. With --whole it is kept as it is, and its
    sides become so many times longer as the upsampler does it, 4 times in shapes-tiny.
    """
    watch = Stopwatch()
    if sampler is not None:
        sampler_name(sampler)
    found = find_pipeline(pipeline)
    folder_name(out)

    with loading(found.name, watch, quiet=quiet):
        from dalle_2.images import open_image, size_of
        from dalle_2.inference.generate import new_seed
        from dalle_2.inference.upscale import UpscaleSettings, batches, enlargement, upscaled
        from dalle_2.pipelines.folder import load

        settings = UpscaleSettings(
            size=size, steps=steps, noise_level=noise_level, tile=tile, overlap=overlap, whole=whole, sampler=sampler
        )
        images = [open_image(picture) for picture in pictures]
        loaded = load(found, device=device, dtype=dtype, low_memory=low_memory, compiled=compiled)
        plan, ways = settings.plan(loaded), [enlargement(loaded, image, settings) for image in images]
    folder = output_folder(out)
    for picture, image, way in zip(pictures, images, ways, strict=True):
        if max(lies := size_of(picture)) > max(image.size):
            read = f"{image.width} x {image.height}"
            _note(f"{picture} is {lies[0]} x {lies[1]}: read as {read}, as larger ones take too much memory", quiet)
        if image.size != way.input:
            was, becomes = f"{image.width} x {image.height}", f"{way.input[0]} x {way.input[1]}"
            _note(f"{picture} is {was}: cropped and resized to {becomes} first", quiet)
    totals: Counter[str] = Counter()
    for rows in batches(ways, settings.micro_batch(loaded)):
        totals.update({name: plan[name].steps for name in ways[rows[0]].stages})
    first = new_seed() if seed is None else seed
    with stage_progress(totals, watch, quiet=quiet, compiled=compiled) as progress:
        for made in upscaled(loaded, images, first, settings, on_step=progress.step):
            watch.lap("other")  # from the last step to a picture
            stem = f"{shortened(pictures[made.index].stem)}-{_size(made.image.size)}px"
            path = save_new(made.image, folder, stem, format, made.metadata)
            if as_json:
                say_json({"file": str(path), **made.metadata})
            elif not quiet:
                typer.echo(f"{path}  seed {made.seed}")
            watch.lap("writing")
    count = f"{len(images)} picture{'' if len(images) == 1 else 's'}"
    _note(f"{count} in {folder.resolve()} ({watch.sum()})", quiet)


def _size(sides: tuple[int, int]) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"


def _note(sentence: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(sentence, err=True)
