"""Pictures into new files: nothing that lies there is ever written over."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from dalle_2.errors import UsageError
from dalle_2.metadata import SUFFIXES, save_image
from dalle_2.paths import at_home
from dalle_2.place import require_place

Format = Literal["jpg", "png"]


def output_folder(out: str | os.PathLike[str]) -> Path:
    """Makes the folder for pictures. Raises UsageError for the name of a file."""
    folder = folder_name(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_name(out: str | os.PathLike[str]) -> Path:
    """A folder for pictures, not made yet. Raises UsageError for the name of a file, and as `require_place` does."""
    folder = at_home(out)
    if os.path.isfile(folder) or folder.suffix.lower() in SUFFIXES:
        raise UsageError(f"{folder} names a file: give the folder that the pictures go to")
    return require_place(folder)


def save_new(image: Image.Image, folder: Path, stem: str, suffix: str, metadata: Mapping[str, Any]) -> Path:
    """Writes a picture as `stem.suffix`, or as `stem-02.suffix` and so on where that is taken; returns its path."""
    with new_file(folder, stem, suffix) as path:
        save_image(image, path, metadata)
    return path


@contextmanager
def new_file(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """Reserves a name by an empty file, so that another process can't take it; frees it again on an error."""
    path = _reserved(folder, stem, suffix)
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _reserved(folder: Path, stem: str, suffix: str) -> Path:
    for number in count(1):
        path = folder / f"{stem}{'' if number == 1 else f'-{number:02}'}.{suffix.lstrip('.')}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise AssertionError("counting never ends")
