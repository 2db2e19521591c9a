"""`dalle2 rerank CAPTION PICTURE...`: pictures in the order in which CLIP finds them close to a caption."""

from pathlib import Path
from typing import Annotated

import typer

from dalle_2.cli import options
from dalle_2.cli.stage_progress import loading
from dalle_2.cli.stopwatch import Stopwatch
from dalle_2.cli.streams import say_json
from dalle_2.pipelines.find import DEFAULT, find_pipeline
from dalle_2.terminal import on_one_line
from dalle_2.text.prompts import check_prompts


def rerank(
    caption: Annotated[str, typer.Argument(help="What the pictures should show.", show_default=False)],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures of any size.", show_default=False)],
    keep: Annotated[int | None, typer.Option(min=1, help="Name so many of the best; by default all.")] = None,
    pipeline: options.PipelineForClip = DEFAULT,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Name pictures in the order in which CLIP finds them close to a caption, the closest first.

    dalle2 rerank "a red circle" generations/*.png --keep 3
    """
    (wanted,) = check_prompts(caption)
    found = find_pipeline(pipeline)
    with loading(found.name, Stopwatch(), quiet=quiet):
        from dalle_2.images import open_image
        from dalle_2.inference.prompt_doubts import caption_warnings
        from dalle_2.inference.rerank import closeness
        from dalle_2.pipelines.folder import load

        images = [open_image(picture) for picture in pictures]
        loaded = load(found, device=device, dtype=dtype)
        cosines = closeness(loaded, images, [wanted] * len(images))
    for doubt in caption_warnings(loaded, [wanted]):
        typer.echo(f"dalle2: warning: {doubt}", err=True)
    ranked = sorted(zip(pictures, cosines, strict=True), key=lambda one: -one[1])
    for picture, cosine in ranked[:keep]:
        if as_json:
            say_json({"file": str(picture), "clip": round(cosine, 4)})
        else:
            typer.echo(f"{cosine:.4f}  {on_one_line(str(picture))}")
