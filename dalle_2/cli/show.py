"""`dalle2 show PICTURE`: read back how a picture was made."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli.streams import say_json
from dalle_2.errors import DataError
from dalle_2.metadata import read_metadata
from dalle_2.terminal import on_one_line


def show(
    pictures: Annotated[
        list[Path], typer.Argument(help="PNG or JPEG files that dalle2 made.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line a picture.")] = False,
) -> None:
    """Read back the prompt and the settings that a picture was made with."""
    found = [(picture, _metadata(picture)) for picture in pictures]
    for picture, metadata in found:
        if as_json:
            say_json({"file": str(picture), **metadata})
        else:
            typer.echo(f"{on_one_line(str(picture))}\n{_table(metadata)}")


def _metadata(picture: Path) -> dict[str, Any]:
    metadata = read_metadata(picture)
    if metadata is None:
        raise DataError(
            f"{picture} says nothing about how it was made: dalle2 did not make it, or it was re-saved"
        )
    return metadata


def _table(metadata: dict[str, Any]) -> str:
    rows = [(on_one_line(key), on_one_line(_plain(value))) for key, value in metadata.items()]
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"  {key:<{width}}  {value}" for key, value in rows)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
