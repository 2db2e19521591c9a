"""A JSON file of settings, of which nobody knows yet whether it is whole, or who wrote it."""

import json
import math
import stat
from pathlib import Path
from typing import Any

from dalle_2.errors import CheckpointError

MOST_BYTES = 2**25  # a vocabulary has a few millions; in memory it takes up to thirty times as much
DEEPEST = 100  # levels; whatever goes through the values may do so by calling itself


def read_object(path: Path, missing: str) -> dict[str, Any]:
    """The object in a file. Raises CheckpointError, with the sentence `missing` where there is no file."""
    try:
        if not stat.S_ISREG((about := path.stat()).st_mode):  # a pipe would be waited for
            raise CheckpointError(f"{path} can't be read: it is no regular file")
        if about.st_size > MOST_BYTES:
            raise CheckpointError(f"{path} has {about.st_size:,} bytes, and a file of settings at most {MOST_BYTES:,}")
        content = parsed(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(missing) from None
    except (OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} can't be read: expected a JSON object, got a {type(content).__name__}")
    return content


def parsed(text: str | bytes, *, finite: bool = False) -> Any:
    """What JSON says, of bytes with or without a byte order mark. finite: NaN and infinite numbers are none.

    Raises ValueError for what is no JSON, and for what is nested deeper than settings ever are.
    """
    number = _finite if finite else float
    try:
        value = json.loads(text, parse_float=number, parse_constant=number)
    except RecursionError:
        value = None
    else:
        if not _too_deep(value):
            return value
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _too_deep(value: Any) -> bool:
    level = _within([value])
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return False
    return True


def _within(outer: dict[str, Any] | list[Any]) -> list[Any]:
    """The objects and lists right inside."""
    return [inner for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, dict | list)]
