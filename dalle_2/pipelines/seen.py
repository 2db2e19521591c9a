"""Which pictures a pipeline was trained on, by what is in their files: a list beside its weights."""

import os
from collections.abc import Iterable
from pathlib import Path

from dalle_2.paths import atomic_write_text

SEEN = "seen-pictures.txt"
_HEAD = "# the first 16 digits of the sha256 of each picture that the training saw, of the data"


def note_seen(folder: Path, data_id: str, digests: Iterable[str]) -> None:
    """Writes the list, unless that of this data is there. data_id: `data_fingerprint`. Missing files have no digest."""
    head = f"{_HEAD} {data_id}"
    if _lines(folder)[:1] != [head]:
        atomic_write_text(folder / SEEN, "\n".join([head, *sorted({*digests} - {""}), ""]))


def read_seen(folder: str | os.PathLike[str]) -> frozenset[str] | None:
    """The digests of what a pipeline's training saw; None where nothing is noted."""
    lines = _lines(Path(folder))
    return frozenset(lines[1:]) if lines else None


def _lines(folder: Path) -> list[str]:
    path = folder / SEEN
    # A damaged line is no picture's digest; it is no reason to end either.
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
