"""What is said on a console that doesn't know every character: nothing ends for a letter that it can't show."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import typer

from dalle_2.terminal import json_shown


def show_what_can_be_shown() -> None:
    """From now on the standard streams write a character that they don't have as an escape, such as \\xe9.

    A console of cp1252 or latin-1, and a pipe in such a locale, would raise UnicodeEncodeError in the middle of a run.
    So would UTF-8 for a file's name that is no text.
    """
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say_json(record: Mapping[str, Any]) -> None:
    """One line of JSON on the standard output; in ASCII where the stream can't say it all, so that it stays JSON."""
    line = json_shown(json.dumps(record, ensure_ascii=False))
    typer.echo(line if _can_say(line) else json.dumps(record))


def _can_say(line: str) -> bool:
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
