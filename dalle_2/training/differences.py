"""In what two identities of a stage differ, in the recipe's own words."""

from collections.abc import Sequence
from typing import Any

from dalle_2.training.identity import SAMPLING
from dalle_2.training.stages import BASES

SHOWN = ("save_every", "preview_every", "log_interval")  # settings of a run that its result does not follow from
LENGTH = ("images", "warmup")  # and those that may grow between two starts
FREE = SHOWN + LENGTH + SAMPLING


def without(identity: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An identity without some settings of its run and of its model."""
    settings = dict(identity["settings"])
    for part in {"run", "config"} & {*settings}:
        settings[part] = {name: value for name, value in settings[part].items() if name not in names}
    return {**identity, "settings": settings}


def in_the_recipe(name: str, stage: str) -> str:
    """What the recipe calls a part of a stage's identity, which also holds how the stage it goes on from was begun."""
    base = BASES.get(stage, "")
    of_base = name.removeprefix(f"{base}_begun.")
    stage = stage if of_base == name else base
    return f"{stage}.{of_base.removeprefix('settings.')}" if of_base.startswith("settings.") else of_base


def differing(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """The dotted names of the values in which two nested dicts differ."""
    names: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += differing(old, new, f"{path}{key}.")
        elif old != new:
            names.append(f"{path}{key}")
    return names
