"""A weight file before it is read: one that can be, and that claims no more than it holds."""

import zipfile
from pathlib import Path

from dalle_2.errors import CheckpointError


def check_readable(path: Path) -> None:
    """Raises CheckpointError for a file that isn't there, is no regular one, or may not be read."""
    try:
        if not path.is_file():
            raise CheckpointError(f"there is no weight file {path}")
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None


def is_archive(path: Path) -> bool:
    """Whether it is an archive, as torch.save writes them.

    Raises CheckpointError for one whose entries are packed, or are more than the file: torch.save packs nothing, and a
    few bytes of such a file could fill the memory.
    """
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # bytes that are no archive can end in any error
        raise CheckpointError(f"{path} is truncated, damaged or not a file of torch.save ({error})") from None
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(
            f"{path} was refused because it unpacks to more than it holds, as no file of torch.save does: it was "
            "packed anew, or is meant to fill the memory"
        )
    return True
