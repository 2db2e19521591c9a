"""`dalle2 generate PROMPT...`: make pictures from prompts."""

import json
import sys
import time
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli.stage_progress import loading, stage_progress
from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation, GenerationSettings
from dalle_2.inference.saving import Format, folder_name, output_folder, save_new
from dalle_2.paths import GENERATIONS
from dalle_2.pipelines.find import DEFAULT, find_pipeline
from dalle_2.text.prompts import check_prompts

# What a file's name begins with. The prompt stays out of it: it may be long, private, or no valid name.
STAMP = "%Y%m%d-%H%M%S"


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What the pictures show.", show_default=False),
    ] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="More prompts, one a line; - is standard input."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Pictures for each prompt.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first picture, the next has one more; random by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every stage.")] = None,
    prior_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the prior alone.")] = None,
    decoder_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the decoder alone.")] = None,
    upsampler_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the upsamplers alone.")] = None,
    eta: Annotated[float, typer.Option(help="Fresh noise in each step, from 0 to below 1.")] = 0.0,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="How closely the decoder follows; 1 is off.")
    ] = None,
    prior_guidance: Annotated[float | None, typer.Option(min=0, help="The same of the prior.")] = None,
    no_prior: Annotated[bool, typer.Option("--no-prior", help="Text embeddings go to the decoder.")] = False,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Embeddings that the prior draws for a picture; the best is kept.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the pictures; by default that of the last upsampler.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="Upsample in tiles of so many pixels a side, which takes less memory."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Pixels that neighbouring tiles share; by default an eighth of a tile.")
    ] = None,
    pipeline: Annotated[str, typer.Option(help="A shipped name, a folder, or a hub id.")] = DEFAULT,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = GENERATIONS,
    format: Annotated[Format, typer.Option(help="Picture format.")] = "png",
    grid: Annotated[bool, typer.Option("--grid", help="Also one sheet with all pictures.")] = False,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the files.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line a picture.")] = False,
) -> None:
    """Make pictures from prompts.

    dalle2 generate "a red circle above a blue square" --n 4 --seed 7
    """
    # All that can be wrong without a model is found before torch is loaded, which takes seconds.
    wanted = check_prompts([*(prompts or []), *_from_file(prompts_file)])
    if not 0 <= eta < 1:
        raise UsageError(f"eta must be at least 0 and below 1, got {eta}: 0 is deterministic")
    found = find_pipeline(pipeline)
    folder = folder_name(out)

    stage_steps = {"prior": prior_steps, "decoder": decoder_steps, "upsampler": upsampler_steps}
    settings = GenerationSettings(
        steps=steps,
        eta=eta,
        guidance=_given({"prior": prior_guidance, "decoder": guidance}),
        stage_steps=_given(stage_steps),
        use_prior=not no_prior,
        candidates=candidates,
        size=size,
        tile=tile,
        overlap=overlap,
    )
    run = _Run(folder, format, not no_metadata, quiet, as_json)
    run.pictures(wanted, n, seed, settings, found, device, dtype)
    if grid:
        run.sheet()
    run.close()


class _Run:
    """One call of the command: where pictures go, and what is said about them."""

    def __init__(self, folder: Path, format: Format, keep_metadata: bool, quiet: bool, as_json: bool) -> None:
        self.folder, self.format, self.keep_metadata = folder, format, keep_metadata
        self.quiet, self.as_json = quiet, as_json
        self.begun, self.stamp = time.monotonic(), time.strftime(STAMP)
        self.made: list[Generation] = []

    def pictures(
        self, prompts: list[str], n: int, seed: int | None, settings: GenerationSettings,
        pipeline: Path, device: str, dtype: str,
    ) -> None:  # fmt: skip
        """Makes and saves them batch by batch, so that an interruption costs one batch at most."""
        with loading(pipeline.name, quiet=self.quiet):
            from dalle_2.inference.generate import generations, new_seed, plan_of, prompt_warnings, repeated
            from dalle_2.pipelines.folder import load

            loaded = load(pipeline, device=device, dtype=dtype)
            plan, doubts = plan_of(loaded, settings), prompt_warnings(loaded, prompts)
        output_folder(self.folder)
        for doubt in doubts:
            typer.echo(f"dalle2: warning: {doubt}", err=True)
        listed = repeated(prompts, n)
        batches = ceil(len(listed) / loaded.micro_batch)
        totals = {name: stage.steps * batches for name, stage in plan.items()}
        first = new_seed() if seed is None else seed
        with stage_progress(totals, quiet=self.quiet) as progress:
            self._save(generations(loaded, listed, first, settings, on_step=progress.step))

    def _save(self, generations: Iterable[Generation]) -> None:
        try:
            for generation in generations:
                stem = f"{self.stamp}-{generation.seed}-{generation.index:03}"
                metadata = generation.metadata if self.keep_metadata else {}
                path = save_new(generation.image, self.folder, stem, self.format, metadata)
                self.made.append(generation)
                self._say(path, generation)
        except BaseException:
            if self.made:
                typer.echo(f"dalle2: {_pictures(len(self.made))} finished before: {self.folder}", err=True)
            raise

    def _say(self, path: Path, generation: Generation) -> None:
        if self.as_json:
            typer.echo(json.dumps({"file": str(path), **generation.metadata}, ensure_ascii=False))
        elif not self.quiet:
            typer.echo(f"{path}  seed {generation.seed}  {_short(generation.prompt)}")

    def sheet(self) -> None:
        """All pictures on one sheet, each above its prompt."""
        from dalle_2.images import grid

        labels = [_short(generation.prompt) for generation in self.made]
        sheet = grid([generation.image for generation in self.made], labels=labels)
        metadata = {"prompts": labels, "seeds": [generation.seed for generation in self.made]}
        stem = f"{self.stamp}-{self.made[0].seed}-grid"
        path = save_new(sheet, self.folder, stem, self.format, metadata if self.keep_metadata else {})
        if not self.quiet:
            typer.echo(path, err=self.as_json)

    def close(self) -> None:
        """Says where the pictures lie."""
        if not self.quiet:
            seconds = time.monotonic() - self.begun
            typer.echo(f"{_pictures(len(self.made))} in {self.folder.resolve()} ({seconds:.1f} s)", err=True)


def _from_file(name: str | None) -> list[str]:
    """The lines of a file that hold something. Raises UsageError if it can't be read."""
    if name is None:
        return []
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"can't read prompts from {name}: {reason}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{'standard input' if name == '-' else name} holds no prompt: write one a line")
    return lines


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {stage: value for stage, value in values.items() if value is not None}


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


def _short(prompt: str, most: int = 80) -> str:
    flat = " ".join(prompt.split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."
