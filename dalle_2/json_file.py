"""A JSON file of settings, of which nobody knows yet whether it is whole."""

import json
from pathlib import Path
from typing import Any

from dalle_2.errors import CheckpointError


def read_object(path: Path, missing: str) -> dict[str, Any]:
    """The object in a file. Raises CheckpointError, with the sentence `missing` where there is no file."""
    try:
        content = json.loads(path.read_bytes())  # which takes a byte order mark, too
    except FileNotFoundError:
        raise CheckpointError(missing) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} can't be read: expected a JSON object, got a {type(content).__name__}")
    return content
