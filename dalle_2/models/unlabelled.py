"""Weights without settings: what they are of is read off their names and shapes where that is plain."""

import importlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle_2.config import Settings
from dalle_2.errors import CheckpointError
from dalle_2.models.checkpoints import KINDS, weightless
from dalle_2.weights.checkpoint import Checkpoint
from dalle_2.weights.others import Found, found, without_first

# A tensor that models of one kind have and others don't; upsamplers share a decoder's, and are said by the caller.
SIGNS = {
    "prior": "network.embed_noised.weight", "autoregressive_prior": "network.embed_dot.weight",
    "clip": "vision.positions", "draft": "coarse.weight", "decoder": "network.conv_in.weight",
}  # fmt: skip
BLOCK = re.compile(r"network\.transformer\.blocks\.(\d+)\.")


def labelled(path: Path, kind: str | None, unlabelled: CheckpointError) -> Checkpoint:
    """The checkpoint that `save_model` would have written of the weights in a file.

    Its settings are those found beside them, else the default ones but for sizes that can be read off the tensors; a
    warning says so. Raises CheckpointError for another kind than `kind`, and naming the cure where settings can't be
    known; `unlabelled` for a file without weights of any kind that is known here.
    """
    held = found(path, kind)
    named = _signed(held) if held is not None else None
    if held is None or named is None:
        raise unlabelled
    tensors, own = named
    if kind == "upsampler" and own == "decoder":
        own = kind
    if kind is not None and own != kind:
        raise CheckpointError(f"{path} holds a {own}, but a {kind} was expected")
    settings = _settings(own, held.config, tensors)
    checkpoint = Checkpoint(own, settings, tensors, {})
    _check_fit(checkpoint, path, guessed=held.config is None)
    if held.config is None:
        warnings.warn(_assumption(path, own, settings), stacklevel=2)
    return checkpoint


def _signed(held: Found) -> tuple[dict[str, Tensor], str] | None:
    """The tensors by the names that a model of ours has, and its kind."""
    tensors: dict[str, Tensor] | None = held.tensors
    while tensors:
        for kind, sign in SIGNS.items():
            if sign in tensors:
                return tensors, held.kind if held.kind in KINDS else kind
        tensors = without_first(tensors)
    return None


def _settings(kind: str, given: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whole settings: those given, as far as the kind has such, on the default ones with sizes from the tensors."""
    home: Any = getattr(importlib.import_module(KINDS[kind].module), KINDS[kind].settings)
    own: Settings = home()
    known = {name: value for name, value in (given or {}).items() if name in home.model_fields}
    return _sized(kind, own.model_dump(mode="json"), tensors) | known


def _sized(kind: str, settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Heads and timesteps leave no trace in a shape; the width of embeddings and the number of blocks do."""
    if "sigma_data" in settings and "precondition.stray" not in tensors:
        settings = settings | {"sigma_data": None}
    if kind == "prior" and "null_text" in tensors:
        blocks = {int(match[1]) for name in tensors if (match := BLOCK.match(name))}
        return settings | {"dim": tensors["null_text"].shape[0], "depth": len(blocks)}
    if kind == "decoder" and "network.null_z" in tensors:
        return settings | {"unet": settings["unet"] | {"z_dim": tensors["network.null_z"].shape[0]}}
    return settings


def _check_fit(checkpoint: Checkpoint, path: Path, *, guessed: bool) -> None:
    try:
        weightless(checkpoint, path)
    except CheckpointError as error:
        settings = "the default settings, as it has none of its own" if guessed else "the settings beside them"
        raise CheckpointError(
            f"{path} holds weights of a {checkpoint.kind} that don't fit {settings} ({_first(error)}): write the model "
            f"anew with dalle_2.save_model(model, {path.name!r}), which keeps its settings beside its weights"
        ) from None


def _first(error: CheckpointError) -> str:
    words = str(error)
    return words if len(words) < 300 else f"{words[:297]}..."


def _assumption(path: Path, kind: str, settings: Mapping[str, Any]) -> str:
    known = {"T": "T = {}", "target": "it predicts {}"}
    said = ", ".join(words.format(settings[name]) for name, words in known.items() if name in settings)
    named = f" ({said})" if said else ""
    return (
        f"{path} holds weights without settings and is taken for a {kind} of the default ones{named}: "
        "dalle_2.save_model(model, path) keeps settings beside weights"
    )
