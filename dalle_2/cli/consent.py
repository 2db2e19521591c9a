"""The one question that is asked before published weights are fetched: whether their licence is accepted."""

import sys

import typer

from dalle_2 import hub
from dalle_2.errors import HubError
from dalle_2.pipelines.find import locate
from dalle_2.published import Published


def ask_first(pipeline: str) -> str:
    """Gives the pipeline's name back, as typer wants it; asks a person if it has to be fetched under a licence.

    Where nobody can answer nothing is asked: then it is fetching that refuses.
    """
    place = locate(pipeline)
    if isinstance(place, str) and (row := hub.to_accept(place)) is not None and _somebody_watches():
        ask(row)
    return pipeline


def ask(row: Published) -> None:
    """Shows a licence, and remembers that it was accepted. Raises HubError if it wasn't."""
    show(row)
    if not _somebody_watches():
        raise HubError(
            f"nobody can be asked here: to accept the licence run dalle2 models download {row.name} --accept-licence"
        )
    if not typer.confirm(f"Do you accept it, and fetch {row.gigabytes} GB?", err=True):
        raise HubError(f"the licence of {row.name} was not accepted: nothing was fetched")
    hub.accept(row)


def show(row: Published) -> None:
    """What a licence asks, in short, and where it stands in full."""
    typer.echo(f"{row.name} is under the licence {row.licence.name}. {row.licence.terms}\n{row.licence.url}", err=True)


def _somebody_watches() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
