"""`dalle2 models`: what can be used, fetching what others have published, and changing one layout into another."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from dalle_2 import copies as kept
from dalle_2 import hub
from dalle_2.cached import HUB_ID, begun, cached
from dalle_2.cli.consent import ask, ask_first, show
from dalle_2.cli.streams import say_json
from dalle_2.errors import CheckpointError, HubError, UsageError
from dalle_2.paths import shipped_pipelines
from dalle_2.pipelines.find import known_pipelines
from dalle_2.pipelines.manifest import Manifest, read_manifest
from dalle_2.published import PUBLISHED, published_as
from dalle_2.terminal import on_one_line


class ListByDefault(TyperGroup):
    """A group that lists where no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] != "--json" else ["list", *args])


app = typer.Typer(cls=ListByDefault, add_completion=False, rich_markup_mode=None)


@app.callback()
def models() -> None:
    """List, fetch and convert the weights that can be used; by itself it lists them."""


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line for each.")] = False) -> None:
    """List the pipelines that are here, and the weights of others that can be fetched or read."""
    for row in [*_here(), *_published(), *_copies()]:
        if as_json:
            say_json(row)
        else:
            typer.echo(_as_text(row))


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="A name from dalle2 models, or a hub id.", show_default=False)],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence without being asked, as in a script.")
    ] = False,
) -> None:
    """Fetch published weights into the hub's cache, after which everything works without a network.

    A download that was cut off goes on where it stopped, and every file is held against the checksum that the hub
    states. The licence of weights that are not freely licensed is shown once, and has to be accepted.
    """
    repo = _repository(name)
    there, row = cached(repo), hub.to_accept(repo)
    if row is not None and accept_licence:
        show(row)
        hub.accept(row)
    elif row is not None:
        ask(row)
    try:
        typer.echo(hub.fetch(repo))
    except HubError:
        if there is None:
            raise
        typer.echo("dalle2: warning: the hub gave no newer copy than this one, which is whole", err=True)
        typer.echo(there)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A pipeline: a name, a folder, a hub id.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    to: Annotated[
        Literal["dalle2", "diffusers"],
        typer.Option(help="The layout of the new folder; that of diffusers is for Karlo's shape alone."),
    ] = "dalle2",
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the weights that are written.")] = "fp32",
    clip: Annotated[
        str | None,
        typer.Option(help="OpenAI's ViT-L/14 for Karlo's own files: a folder, or a hub id.", show_default=False),
    ] = None,
) -> None:
    """Write a pipeline anew, in another layout or dtype.

    Karlo's own .ckpt files and the layout of diffusers become a folder of ours, or the other way round for diffusers:

    dalle2 models convert path/to/karlo-v1-alpha my-karlo --dtype fp16
    """
    from dalle_2.models.placement import DTYPES
    from dalle_2.pipelines.convert import convert as convert_pipeline

    typer.echo(convert_pipeline(ask_first(source), target, to=to, dtype=DTYPES[dtype], clip=clip))


@app.command()
def forget() -> None:
    """Delete the copies of weights that were kept as they are computed with. They are made again when wanted."""
    typer.echo(f"{kept.forget() / 1e9:.1f} GB deleted")


def _here() -> Iterator[dict[str, Any]]:
    """The pipelines that a bare name stands for."""
    for name, folder in known_pipelines().items():
        size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
        try:
            does = _roles(read_manifest(folder))
        except CheckpointError as error:
            does = f"can't be used: {error}"
        licence = "Apache-2.0" if folder.parent == shipped_pipelines() else "yours"
        yield {
            "name": name, "does": does, "licence": licence, "gigabytes": round(size / 1e9, 3), "state": "here",
            "where": str(folder),
        }  # fmt: skip


def _roles(manifest: Manifest) -> str:
    drawn = manifest.parts.get((manifest.upsamplers or ["decoder"])[-1])
    size = drawn.config.get("image_size") if drawn and drawn.config else None
    roles = ", ".join(role for role in manifest.parts if role != "tokenizer")
    return f"text to picture{f' at {size} pixels' if isinstance(size, int) else ''}, and edits, by {roles}"


def _published() -> Iterator[dict[str, Any]]:
    """What others have published, and how much of it lies in the hub's cache."""
    for row in PUBLISHED:
        folder = cached(row.repo) if row.repo else None
        state = "here" if folder else _lacking(row.repo)
        yield {
            "name": row.name, "does": row.does, "licence": row.licence.name, "gigabytes": row.gigabytes,
            "state": state, "where": str(folder or row.page),
        }  # fmt: skip


def _copies() -> Iterator[dict[str, Any]]:
    """Weights that were changed for this machine and kept."""
    for folder, size in kept.copies().items():
        yield {
            "name": folder.name, "does": "weights as they are computed with; dalle2 models forget deletes such copies",
            "licence": "that of the weights", "gigabytes": round(size / 1e9, 3), "state": "copy", "where": str(folder),
        }  # fmt: skip


def _lacking(repo: str | None) -> str:
    if repo is None:
        return "not on the hub"
    return "here in part" if begun(repo) else "not here"


def _as_text(row: dict[str, Any]) -> str:
    size = f"{row['gigabytes']:.1f} GB" if row["gigabytes"] >= 1 else f"{1000 * row['gigabytes']:.0f} MB"
    name, does, where = (on_one_line(row[key]) for key in ("name", "does", "where"))
    return f"{name:<18} {size:>7}  {row['licence']:<22}  {row['state']}\n    {does}\n    {where}"


def _repository(name: str) -> str:
    """The hub id that a name stands for. Raises UsageError."""
    row = published_as(name)
    if row is not None and row.repo is None:
        raise UsageError(
            f"{name} lies on no hub: {row.page} tells where its files are, and the README what reads a folder of them"
        )
    if row is not None and row.repo is not None:
        return row.repo
    if name in known_pipelines():
        raise UsageError(f"{name} is here already: {known_pipelines()[name]}")
    if HUB_ID.fullmatch(name):
        return name
    names = [row.name for row in PUBLISHED if row.repo]
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    raise UsageError(f"there are no weights {name!r} to fetch: {hint}, or give a hub id")
