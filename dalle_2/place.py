"""Where results are to go: looked at before any work is done, so that hours of it don't end in nothing."""

import os
import tempfile
from pathlib import Path

from dalle_2.errors import UsageError
from dalle_2.paths import at_home, is_address

LONGEST = "x" * 100  # about what a result's own name takes


def require_place(out: str | os.PathLike[str]) -> Path:
    """A folder that is there or can be made. Leaves nothing there.

    Raises UsageError for an address such as s3://bucket, for a name that is too long, and where a file, a link that
    leads nowhere, a disk or a permission is in the way.
    """
    folder = at_home(out)
    if is_address(folder):
        raise UsageError(
            f"{folder} is no folder on this machine but the address of another place: name a folder, and copy it there "
            "when it is done"
        )
    nearest = _nearest(folder)
    if not nearest.is_dir():
        what = "a link that leads to no folder" if nearest.is_symlink() else "a file"
        raise UsageError(f"{nearest} is {what}: name a folder for the results, not {folder}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"nothing may be written into {nearest}: name another folder than {folder}")
    _try_out(nearest, folder)
    return folder


def _nearest(folder: Path) -> Path:
    """What there is of a path, from its end on: the folder itself or one above, or what is in the way."""
    whole = folder.absolute()
    try:
        return next(place for place in (whole / LONGEST, whole, *whole.parents) if _is_there(place))
    except (OSError, ValueError) as error:  # too long, a link to itself, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{folder} can't be a folder for the results ({reason}): name another one") from None


def _is_there(place: Path) -> bool:
    """Whether something has that name, a link that leads nowhere too. Raises OSError where it can't have it."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _try_out(nearest: Path, folder: Path) -> None:
    """Permissions don't tell everything: a disk may be full, or of the system's own."""
    try:
        with tempfile.TemporaryDirectory(prefix=".dalle2-", dir=nearest):
            pass
    except OSError as error:
        raise UsageError(
            f"nothing can be written into {nearest} ({error.strerror}): name another folder than {folder}"
        ) from None
