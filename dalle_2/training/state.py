"""The state of a training run in one file that is whole or absent, with the one before it kept for the worst case."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from dalle_2.errors import CheckpointError
from dalle_2.paths import atomic_path, atomic_write_text, clear_leftovers
from dalle_2.training.plain import plain

STATE, PREVIOUS = "state.pth", "state-previous.pth"
FORMAT = 1
# What a state holds, of which kinds; the second what earlier releases didn't write.
ENTRIES = {
    "model_type": str, "model": dict, "ema": dict | NoneType, "optimizer": dict, "scaler": dict, "images": int,
    "steps": int, "seconds": float | int, "seed": int,
}  # fmt: skip
LATER = {
    "run": dict, "config": dict | NoneType, "optimizer_type": str, "apart": list, "passes": dict, "skipped": int,
    "lost": int,
}  # fmt: skip
COUNTS = ("images", "steps", "skipped", "lost", "seed", "done", "rows")
RUN = {"stage": str, "kind": str, "seed": int, "settings": dict}
OPTIMISER = {"state": dict, "param_groups": list}
PASSES = {"done": int, "rows": int}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # with which PyTorch writes of what it refuses


def save_state(folder: Path, state: dict[str, Any], run: Mapping[str, Any] | None = None) -> Path:
    """Writes plain values and tensors; the last state stays beside the new one under another name.

    run: whose state it is, see `saved_run`. Raises OSError on a full disk, and UsageError naming an entry that couldn't
    be read back; what was saved before can then still be loaded.
    """
    path, state = folder / STATE, plain(state)
    with atomic_path(path) as temporary:
        # Through a file of Python's own: PyTorch's says of a full disk only that a position was unexpected.
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
        digest = sha256_of(temporary)
        if is_whole(path):  # a damaged state must not push out the whole one before it
            os.replace(path, folder / PREVIOUS)
            os.replace(digest_file(path), digest_file(folder / PREVIOUS))
        atomic_write_text(digest_file(path), json.dumps({"sha256": digest, "run": dict(run or {})}))
    return path


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest whole state, or None where nothing was ever saved. Raises CheckpointError if none of them is whole.

    What killed processes left of theirs goes.
    """
    clear_leftovers(folder, below=False)
    paths = [folder / name for name in (STATE, PREVIOUS) if (folder / name).exists()]
    if not paths:
        return None
    for path in paths:
        if is_whole(path):
            return _read(path)
    names = " and ".join(path.name for path in paths)
    raise CheckpointError(f"no training state in {folder} is whole: delete {names} there to start anew")


def saved_run(digest: str) -> dict[str, Any] | None:
    """Whose state lies beside a digest, as JSON; None where nothing says it, as in those of earlier releases."""
    try:
        run = json.loads(digest).get("run")
    except (ValueError, AttributeError, RecursionError):
        return None
    return run if lacking(run, RUN) is None else None


def check_state(state: Mapping[str, Any], where: str | Path) -> None:
    """Raises CheckpointError for what has the form of a state and isn't one, naming the entry that shows it."""
    wrong = lacking(state, ENTRIES) or lacking(state, LATER, needed=False) or _lacking_within(state)
    if wrong is not None:
        raise CheckpointError(
            f"the state in {where} is no training state of this package: {wrong}; choose another folder"
        )


def lacking(values: Any, kinds: Mapping[str, Any], *, needed: bool = True) -> str | None:
    """What is wrong with a table whose entries should be of these kinds; None where nothing is."""
    if not isinstance(values, Mapping):
        return f"it is a {type(values).__name__}"
    for name, kind in kinds.items():
        if name not in values and needed:
            return f"it has no {name!r}"
        if name in values and not isinstance(values[name], kind):
            return f"its {name!r} is a {type(values[name]).__name__}"
        if name in COUNTS and values.get(name, 0) < 0:
            return f"its {name!r} is {values[name]}"
    return None


def _lacking_within(state: Mapping[str, Any]) -> str | None:
    """The same of the tables in a state."""
    tables: dict[str, Mapping[str, Any]] = {"optimizer": OPTIMISER, "passes": PASSES, "run": RUN}
    for name, kinds in tables.items():
        if name in state and (wrong := lacking(state[name], kinds)) is not None:
            return f"of its {name!r}, {wrong}"
    for name in ("model", "ema"):
        weights = state[name] or {}
        if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items()):
            return f"its {name!r} holds something else than tensors"
    return None


def is_whole(path: Path) -> bool:
    """Whether the file is what was once saved. Its digest may lie under either name: a kill between the moves of a
    state and of its digest leaves them so."""
    known = {_digest(digest_file(path.with_name(name))) for name in (STATE, PREVIOUS)}
    try:
        return sha256_of(path) in known
    except OSError:  # it is gone, or the disk can't read it any more
        return False


def digest_file(path: Path) -> Path:
    """Where the digest of a state lies: beside it, as JSON."""
    return path.with_suffix(".json")


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no state can end in any error
        raise CheckpointError(f"{path} is no training state of this package: {_first_line(error)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has another format than {FORMAT}: continue it with the version that wrote it")
    return state


def _first_line(error: Exception) -> str:
    return COLOURS.sub("", str(error)).partition("\n")[0] or type(error).__name__
