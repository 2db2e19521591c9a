"""A JSON file of settings, of which nobody knows yet whether it is whole, or who wrote it."""

import json
import math
from pathlib import Path
from typing import Any

from dalle_2.errors import CheckpointError

LARGEST = 2**25  # bytes; what it holds may take thirty times as much memory
DEEPEST = 100  # levels; whatever goes through the values may do so by calling itself


def read_object(path: Path, missing: str) -> dict[str, Any]:
    """The object in a file. Raises CheckpointError, with the sentence `missing` where there is no file."""
    try:
        content = parsed(_content(path))
    except FileNotFoundError:
        raise CheckpointError(missing) from None
    except (OSError, ValueError) as error:
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


def _content(path: Path) -> bytes:
    """All of a file. Raises ValueError for what is none, such as a pipe, which may have no end, and for a large one."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST // 2**20} MiB")
    return content


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
