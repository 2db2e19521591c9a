"""`dalle2 train`: every stage of a recipe, or one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dalle_2.errors import UsageError
from dalle_2.terminal import json_shown
from dalle_2.training.stages import STAGES

WHAT = (
    f"A preset, a TOML file, or both a stage ({', '.join(STAGES)}) and one of these; by default shapes-tiny, and with "
    "--data my-pictures."
)
if TYPE_CHECKING:
    from dalle_2.training.train import Training

HERE = "."  # the source of presets that leave the folder open


def train(
    what: Annotated[list[str] | None, typer.Argument(help=WHAT, show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Train on this folder of captioned pictures, or s3://...")] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Read what links in the folder, and names in tables, lead to.")
    ] = False,
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of --data that training never sees, for dalle2 evaluate --data; 0.1 is every tenth."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The pipeline's folder; by default trained_models/NAME.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the recipe, e.g. decoder.run.images=50000.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Multiply the length of every stage: 2 for twice the minutes.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    lanes: Annotated[
        int | None,
        typer.Option(min=1, max=2, help="Stages that train at once; by default 2 on a CPU of several cores, else 1."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe as JSON and stop.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what training would take, here and on other hardware, and stop."),
    ] = False,
    stop_status: Annotated[
        int,
        typer.Option(
            min=0, max=255, help="Exit status after SIGTERM, once the state is saved; 143 for schedulers that need it."
        ),
    ] = 0,
    hardware: Annotated[str, typer.Option(help="For --dry-run: v100, rtx4090, tpu-v4, a100, h100 or h200.")] = "a100",
    devices: Annotated[int, typer.Option(min=1, help="For --dry-run: how many of them.")] = 1,
) -> None:
    """Train a pipeline, or one stage of it.

    Called again it goes on where it stopped; what is finished is skipped, or, but for CLIP, goes on where more images
    are asked for. The folder it leaves is a pipeline that `dalle2 generate --pipeline` takes. The learning rate is
    --set STAGE.run.lr=1e-3. A trained CLIP is taken with --set clip.encoder=FOLDER; fine-tuning the other parts on
    other pictures isn't there yet.
    """
    stages, names = split_stages(what or [])
    from dalle_2.presets import resolve
    from dalle_2.training.paper import PAPER

    options = ["data.options.follow_links=true"] if follow_links else []
    options += [] if held_out is None else [f"data.options.held_out={held_out}"]
    recipe = resolve(names, data=data, changes=[*(changes or []), *options], scale=scale)
    if names and names[0] in PAPER:  # one column of the paper's table
        stages = (PAPER[names[0]].stage,)
    if show:
        typer.echo(json_shown(recipe.model_dump_json(indent=2)))
        return
    if dry_run:
        typer.echo(estimated(recipe, stages, hardware, devices, device))
        return

    from dalle_2.models.placement import choose_device
    from dalle_2.paths import TRAINED_MODELS, quoted
    from dalle_2.place import require_place
    from dalle_2.training.expectation import expectation
    from dalle_2.training.progress import reporter
    from dalle_2.training.train import Training

    if recipe.data.source == HERE:
        name = names[0] if names else recipe.name
        raise UsageError(f"{name} learns from pictures of yours: name their folder with --data")
    folder, place = require_place(out or TRAINED_MODELS / recipe.name), str(choose_device(device))
    lanes = lanes or default_lanes(place)
    training = Training(
        recipe, folder, reporter=reporter(quiet=quiet), device=place, lanes=lanes,
        say=lambda line: None if quiet else typer.echo(line, err=True),
    )  # fmt: skip
    training.check(stages)
    if not quiet:
        typer.echo(expectation(recipe, folder), err=True)
    with stopped_in_words(training, stop_status), missing_pictures_named(training):
        pipeline = training.train(stages)
        if pipeline is None:
            typer.echo(f"stages done: {', '.join(stages)}; the pipeline needs the others too", err=True)
        else:
            typer.echo(f'{pipeline}\nnow: dalle2 generate "your words" --pipeline {quoted(pipeline)}')


@contextmanager
def missing_pictures_named(training: "Training") -> Iterator[None]:
    """Says at the end which pictures couldn't be used: whoever wants no progress still wants to know that."""
    try:
        yield
    finally:
        if training.skipped:
            typer.echo(f"warning: {training.skipped}", err=True)


@contextmanager
def stopped_in_words(training: "Training", status: int) -> Iterator[None]:
    """Says of a training that was stopped where it was, and what is kept; after SIGTERM it ends with `status`."""
    from dalle_2.training.interrupt import Stopped, Terminated

    try:
        yield
    except (KeyboardInterrupt, Terminated) as end:
        whole = isinstance(end, Stopped) or (isinstance(end, Terminated) and end.code == 0)
        kept = "the state is saved" if whole else "what was saved last is kept"
        at = f"stopped at {training.at}" if training.at else "stopped"
        typer.echo(f"{at}, not finished: {kept} in {training.run}, and the same command goes on from there", err=True)
        if isinstance(end, Terminated):
            raise Terminated(status) from None
        raise


def estimated(recipe: Any, stages: Sequence[str], hardware: str, devices: int, device: str = "auto") -> str:
    """What training those stages would take, as a table; models of the paper beside the paper's own figures.

    Below it, how long it would take on this machine, by a few steps.
    """
    from dalle_2.models.placement import choose_device
    from dalle_2.training import dry_run, here
    from dalle_2.training.paper import PAPER, PAPER_RECIPE

    names = {stated.stage: name for name, stated in PAPER.items()} if recipe.name == PAPER_RECIPE.name else {}
    counted = [stage for stage in dry_run.countable(recipe) if stage in stages]
    if not counted:
        raise UsageError(f"this recipe trains {', '.join(dry_run.countable(recipe))}, none of {', '.join(stages)}")
    runs = {names.get(stage, stage): dry_run.dry_run(recipe, stage) for stage in counted}
    stated = {name: PAPER[name].parameters for name in runs if name in PAPER}
    table = dry_run.table(runs, stated, hardware, devices)
    tried = here.tried(recipe, runs, str(choose_device(device)))
    return "\n".join([table, tried, *(f"{name}: {PAPER[name].note}" for name in stated if PAPER[name].note)])


def default_lanes(device: str) -> int:
    """How many stages train at once. Windows has no way to ask the other process to stop that lets it save."""
    import torch

    return 2 if device == "cpu" and torch.get_num_threads() > 1 and os.name != "nt" else 1


def split_stages(what: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The stages named, or all, and what else was named."""
    stages = tuple(word for word in what if word in STAGES)
    names = [word for word in what if word not in STAGES]
    if len(names) > 1:
        close = [near for name in names for near in get_close_matches(name, STAGES, n=1)]
        hint = f"; did you mean the stage {close[0]!r}?" if close else ""
        raise UsageError(f"train takes stages and one preset or TOML file, got {', '.join(names)}{hint}")
    return stages or STAGES, names
