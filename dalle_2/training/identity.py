"""Whose state a folder holds: the stage, its seed and the settings of its model, in words that fit a sentence."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dalle_2.errors import UsageError

# Settings of a model that only drawing with it depends on.
SAMPLING = (
    "steps", "guidance", "text_guidance", "threshold", "candidates", "noise_level",
    "temperature", "top_k", "top_p", "dot_percentile",
)  # fmt: skip
LATER = ("eps_mean_square",)  # and what is measured of one that is trained
LONGEST = 60  # characters of a value that a sentence can bear
MOST = 3  # differences that it names


def identity(model: nn.Module, stage: str, kind: str, seed: int) -> dict[str, Any]:
    """Plain values that two trainers share if one may go on where the other stopped."""
    config: Any = getattr(model, "config", None)
    values = config.model_dump(mode="json") if hasattr(config, "model_dump") else {}
    learned = {name: value for name, value in values.items() if name not in (*SAMPLING, *LATER)}
    return {"stage": stage, "kind": kind, "seed": seed, "settings": dict(flat(learned))}


def stated(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Whose state that is. Those of earlier releases say the kind and the seed, and are taken for the stage's own."""
    if "run" in state:
        return dict(state["run"])
    kind = state["model_type"]
    return {**own, "kind": kind, "seed": state["seed"], "stage": own["stage"] if kind == own["kind"] else kind}


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; a long value is known by its digest."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{path}{name}.")
        else:
            text = json.dumps(value)
            long = len(text) > LONGEST
            result[f"{path}{name}"] = hashlib.sha256(text.encode()).hexdigest()[:12] if long else value
    return result


def check_same_run(there: Mapping[str, Any], own: Mapping[str, Any], where: str | Path) -> None:
    """Raises UsageError naming both, if the state of one run would be taken, or written over, by another."""
    if any(there[name] != own[name] for name in ("stage", "kind", "seed")):
        raise UsageError(
            f"{where} holds the run of {_words(there)}, not of {_words(own)}: "
            "choose another folder, and give each trainer a save_dir of its own"
        )
    before, now = there["settings"], own["settings"]
    # A setting that one of them lacks is newer than the other's release.
    changed = [name for name in before if name in now and before[name] != now[name]][:MOST]
    if changed:
        old, new = (", ".join(f"{name} {one[name]}" for name in changed) for one in (before, now))
        raise UsageError(
            f"{where} holds the run of {_a(own['stage'])} with {old}, not with {new}: "
            "choose another folder, and give each trainer a save_dir of its own"
        )


def _words(run: Mapping[str, Any]) -> str:
    kind = "" if run["kind"] == run["stage"] else f" ({_a(run['kind'])})"
    return f"{_a(run['stage'])}{kind} with seed {run['seed']}"


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"
