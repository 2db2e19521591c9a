"""The state of a training run in one file that is whole or absent, with the one before it kept for the worst case."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from dalle_2.errors import CheckpointError
from dalle_2.paths import atomic_path, atomic_write_text

STATE, PREVIOUS = "state.pth", "state-previous.pth"
FORMAT = 1


def save_state(folder: Path, state: dict[str, Any]) -> Path:
    """Writes plain values and tensors; the last state stays beside the new one under another name."""
    path = folder / STATE
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)
        digest = _sha256(temporary)
        if path.exists():
            # Both files move before the new one takes its place: at every moment one state is whole.
            os.replace(path, folder / PREVIOUS)
            if _digest_file(path).exists():
                os.replace(_digest_file(path), _digest_file(folder / PREVIOUS))
        atomic_write_text(_digest_file(path), json.dumps({"sha256": digest}))
    return path


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest whole state, or None where nothing was ever saved. Raises CheckpointError if none of them is whole."""
    paths = [folder / name for name in (STATE, PREVIOUS) if (folder / name).exists()]
    if not paths:
        return None
    for path in paths:
        if _is_whole(path):
            return _read(path)
    raise CheckpointError(f"no training state in {folder} is whole: delete {paths[0].name} there to start anew")


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is no training state of this package: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has another format than {FORMAT}: continue it with the version that wrote it")
    return state


def _is_whole(path: Path) -> bool:
    try:
        wanted = json.loads(_digest_file(path).read_text())["sha256"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(_sha256(path) == wanted)


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
