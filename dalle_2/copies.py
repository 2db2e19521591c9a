"""The copies of weights that are kept in another dtype: where they are, and deleting them. Wants no torch."""

import os
from contextlib import suppress
from pathlib import Path

from dalle_2.paths import kept_weights

SWITCH = "DALLE2_KEEP_WEIGHTS"  # in the environment; 0 keeps none
FILES = "*.safetensors"


def wished() -> bool:
    """Whether copies may be kept."""
    return os.environ.get(SWITCH) != "0"


def copies() -> dict[Path, int]:
    """The folders of copies that there are, and how many bytes each holds."""
    folders = sorted(path for path in kept_weights().glob("*") if path.is_dir())
    return {folder: sum(file.stat().st_size for file in folder.glob(FILES)) for folder in folders}


def forget() -> int:
    """Removes all copies, also what interrupted runs have left. How many bytes that were."""
    known = copies()
    for folder in known:
        for file in folder.glob(FILES):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # something lies there that is none of ours
            folder.rmdir()
    return sum(known.values())
