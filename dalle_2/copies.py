"""The copies of weights that were changed for this machine: where they are, and deleting them. Wants no torch."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from dalle_2.paths import kept_weights

SWITCH = "DALLE2_KEEP_WEIGHTS"  # in the environment; 0 keeps none
# A part, its dtype, and what the copy was made of; with a dot before it and a number after it while it is written.
NAME = re.compile(r"\.?[a-z_]+-(float32|bfloat16|float16)-[0-9a-f]{16}(\.[0-9a-f]{8})?\.safetensors")

_unwished = ContextVar("unwished", default=False)


@contextmanager
def none_kept() -> Iterator[None]:
    """Inside, no copies are kept: of weights that are read once."""
    token = _unwished.set(True)
    try:
        yield
    finally:
        _unwished.reset(token)


def place(source: Path) -> Path | None:
    """Where copies of a folder's weights are kept; None where none are wished, or nobody's home is known."""
    if os.environ.get(SWITCH) == "0" or _unwished.get():
        return None
    return kept_weights(source)


def copies() -> dict[Path, int]:
    """The folders of copies that there are, and how many bytes each holds."""
    return {folder: sum(files.values()) for folder in _folders() if (files := _files(folder))}


def forget() -> int:
    """Removes all copies, also what interrupted runs have left. How many bytes that were."""
    given_back = 0
    for folder in _folders():
        for file, size in _files(folder).items():
            with suppress(OSError):
                file.unlink()
                given_back += size
        with suppress(OSError):  # something lies there that is none of ours
            folder.rmdir()
    return given_back


def _folders() -> list[Path]:
    home = kept_weights()
    return sorted(path for path in home.glob("*") if path.is_dir() and not path.is_symlink()) if home else []


def _files(folder: Path) -> dict[Path, int]:
    sizes = {}
    for path in folder.glob("*"):  # of a folder that may not be read it finds none
        with suppress(OSError):  # it may have got its name, or gone, in the meantime
            if NAME.fullmatch(path.name) and not path.is_symlink():
                sizes[path] = path.stat().st_size
    return sizes
