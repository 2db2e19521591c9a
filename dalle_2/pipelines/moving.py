"""How the files of a new pipeline get their names: all of them, whatever ends the process on the way."""

import os
from contextlib import suppress
from pathlib import Path

from dalle_2.cached import MANIFEST

MOVING = ".moving-in"  # in the pipeline's folder: the files of a new one that is whole, on their way to their names


def move_in(aside: Path, folder: Path) -> None:
    """Gives the files in `aside` their names in `folder`, which it lies in; from the first move on they count."""
    finish_move(folder)
    os.replace(aside, folder / MOVING)
    finish_move(folder)


def finish_move(folder: Path) -> None:
    """Goes on where a killed process stopped, if one did; two may do so at once.

    pipeline.json goes last: with its sums it tells a whole folder from one that is half moved.
    """
    moving = folder / MOVING
    with suppress(FileNotFoundError):
        for path in sorted(moving.iterdir(), key=lambda path: path.name == MANIFEST):
            with suppress(FileNotFoundError):
                os.replace(path, folder / path.name)
        moving.rmdir()
