"""One call of a command that makes pictures: where they go, and what is said about them."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from dalle_2.cli.stage_progress import loading, stage_progress
from dalle_2.cli.stopwatch import Stopwatch
from dalle_2.cli.streams import say_json
from dalle_2.inference.generation import Generation
from dalle_2.inference.saving import Format, folder_name, output_folder, save_new
from dalle_2.pipelines.find import find_pipeline

# What a file's name begins with. The prompt stays out of it: it may be long, private, or no valid name.
STAMP = "%Y%m%d-%H%M%S"
ON_SHEET = 1_000  # pictures at most
DIGITS = 3  # of a picture's number there, if no more are needed


class Run:
    """Saves pictures as they come, so that an interruption costs no more than what is not drawn yet. stem: after the
    stamp in names, in which the pictures' numbers follow, so that they sort in the order in which they were made. grid:
    whether there will be a sheet, for which the first pictures stay in memory."""

    def __init__(
        self, out: Path, format: Format, *, stem: str = "", keep_metadata: bool = True, grid: bool, quiet: bool,
        as_json: bool,
    ) -> None:  # fmt: skip
        self.folder, self.format, self.keep_metadata = folder_name(out), format, keep_metadata
        self.quiet, self.as_json = quiet, as_json
        self.watch, self.stamp = Stopwatch(), time.strftime(STAMP) + (f"-{stem}" if stem else "")
        self.count, self.most = 0, ON_SHEET if grid else 0
        self.kept: list[Generation] = []
        self.digits = DIGITS

    def save(self, generations: Iterable[Generation]) -> None:
        """Writes each picture and says where it lies."""
        try:
            for generation in generations:
                self.watch.lap("other")  # from the last step to a picture
                output_folder(self.folder)  # only now that there is something to write
                stem = f"{self.stamp}-{self.count:0{self.digits}}-{generation.seed}"
                metadata = generation.metadata if self.keep_metadata else {}
                path = save_new(generation.image, self.folder, stem, self.format, metadata)
                self.count += 1
                self.kept += [generation] if len(self.kept) < self.most else []
                self._say(path, generation)
                self.watch.lap("writing")
        except BaseException:
            if self.count:
                typer.echo(f"dalle2: {pictures(self.count)} finished before: {self.folder}", err=True)
            raise

    def _say(self, path: Path, generation: Generation) -> None:
        if self.as_json:
            say_json({"file": str(path), **generation.metadata})
        elif not self.quiet:
            typer.echo(f"{path}  seed {generation.seed}  {short(generation.prompt)}".rstrip())

    def sheet(self, columns: int | None = None) -> None:
        """All pictures on one sheet, or the first of very many, each above its prompt."""
        from dalle_2.images import grid

        labels = [short(generation.prompt) for generation in self.kept]
        sheet = grid([generation.image for generation in self.kept], columns, labels=labels)
        metadata = {"prompts": labels, "seeds": [generation.seed for generation in self.kept]}
        stem = f"{self.stamp}-grid-{self.kept[0].seed}"
        path = save_new(sheet, self.folder, stem, self.format, metadata if self.keep_metadata else {})
        if not self.quiet:
            typer.echo(path, err=self.as_json)

    def close(self) -> None:
        """Says where the pictures lie, and where the time went."""
        self.watch.lap("writing")
        if not self.quiet:
            typer.echo(f"{pictures(self.count)} in {self.folder.resolve()} ({self.watch.sum()})", err=True)


def edit(
    task: str,
    pipeline: str,
    make: Callable[[Any, int, Any], Iterable[Generation]],
    *,
    seed: int | None,
    device: str,
    dtype: str,
    low_memory: bool,
    compiled: bool,
    out: Path,
    format: Format,
    grid: bool,
    quiet: bool,
    as_json: bool,
    captions: Sequence[str] = (),
) -> None:
    """What all editing commands do: load a pipeline, make pictures with `make(pipeline, seed, on_step)`, save them.

    captions: whose unknown words are warned of.
    """
    found = find_pipeline(pipeline)
    run = Run(out, format, stem=task, grid=grid, quiet=quiet, as_json=as_json)
    with loading(found.name, run.watch, quiet=quiet):
        from dalle_2.inference.generate import new_seed
        from dalle_2.inference.prompt_doubts import prompt_warnings
        from dalle_2.pipelines.folder import load

        loaded = load(found, device=device, dtype=dtype, low_memory=low_memory, compiled=compiled)
        doubts = prompt_warnings(loaded, captions) if captions else []
    for doubt in doubts:
        typer.echo(f"dalle2: warning: {doubt}", err=True)
    with stage_progress({}, run.watch, quiet=quiet, compiled=compiled) as progress:
        run.save(make(loaded, new_seed() if seed is None else seed, progress.step))
    if grid and run.kept:
        run.sheet(len(run.kept))
    run.close()


def pictures(count: int) -> str:
    """The count in words."""
    return f"{count} picture{'' if count == 1 else 's'}"


def short(prompt: str, most: int = 80) -> str:
    """A prompt on one line, its end cut off."""
    flat = " ".join(prompt.split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."
