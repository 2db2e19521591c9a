"""Pictures into new files: nothing that lies there is ever written over."""

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from dalle_2.errors import UsageError
from dalle_2.metadata import SUFFIXES, encoded
from dalle_2.paths import at_home, write_new
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
    """Writes a picture as `stem.suffix`, or as `stem-02.suffix` and so on where that is taken; returns its path.

    Whatever ends the process meanwhile, under such a name lies a whole picture or none. Raises as `encoded` does, and
    OSError with the picture's name on a full disk.
    """
    suffix = suffix.lstrip(".")
    names = (folder / f"{stem}{'' if number == 1 else f'-{number:02}'}.{suffix}" for number in count(1))
    return write_new(encoded(image, suffix, metadata), names)
