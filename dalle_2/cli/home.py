"""The home folder in the options of commands: shells leave the "~" of --out=~/pictures as it is, and Windows any."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from dalle_2.paths import at_home

KNOWS = "knows_home"


def knowing_home(app: typer.Typer) -> typer.Typer:
    """The same commands, each of which finds the home folder in whatever argument or option of it is a path."""
    for command in app.registered_commands:
        if command.callback is not None and not hasattr(command.callback, KNOWS):  # a group may be asked for again
            command.callback = _called_with_home(command.callback)
    return app


def _called_with_home(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)  # which typer reads the options from
    def called(**values: Any) -> Any:
        return command(**{name: _found(value) for name, value in values.items()})

    setattr(called, KNOWS, True)
    return called


def _found(value: Any) -> Any:
    if isinstance(value, list):
        return [_found(one) for one in value]
    return at_home(value) if isinstance(value, Path) else value
