"""A model <-> one weight file: which class a file's kind stands for."""

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dalle_2.config import Settings, parse
from dalle_2.errors import CheckpointError, ConfigError, UsageError
from dalle_2.models.rest import Shelved
from dalle_2.models.unfilled import empty_of, give_memory
from dalle_2.models.wrapped import unwrapped
from dalle_2.weights.checkpoint import (
    Checkpoint,
    NoHeader,
    check_tensors,
    like,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
)
from dalle_2.weights.prefixes import plain_name, plain_names


class Kind(NamedTuple):
    """Where a kind's class and settings live. Names, so that a file loads no other model's code."""

    module: str
    model: str
    settings: str


KINDS = {
    "clip": Kind("dalle_2.models.clip", "CLIP", "CLIPConfig"),
    "prior": Kind("dalle_2.models.prior", "Prior", "PriorConfig"),
    "autoregressive_prior": Kind(
        "dalle_2.models.autoregressive_prior", "AutoregressivePrior", "AutoregressivePriorConfig"
    ),
    "draft": Kind("dalle_2.models.draft", "Draft", "DraftConfig"),
    "decoder": Kind("dalle_2.models.decoder", "Decoder", "DecoderConfig"),
    "upsampler": Kind("dalle_2.models.upsampler", "Upsampler", "UpsamplerConfig"),
    "glide": Kind("dalle_2.models.glide", "GlideModel", "GlideConfig"),
    "dvae": Kind("dalle_2.models.dvae", "DVAE", "DVAEConfig"),
}


# What files say by leaving a setting out that they are older than.
OLDER: Mapping[str, Mapping[str, Any]] = {kind: {"sigma_data": None} for kind in ("prior", "decoder", "upsampler")}


@runtime_checkable
class Stored(Protocol):
    """A model that fits into a weight file."""

    kind: str
    config: Settings

    def state_dict(self) -> dict[str, Tensor]: ...


def save_model(
    model: nn.Module,
    path: str | Path,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a model with its settings, atomically; `dtype` is for floating-point tensors only, and not for those of
    modules that are `stored_exactly`. What wraps the model, such as torch.compile or DataParallel, is left out.

    provenance: plain JSON values about its origin; by default what came with it when it was loaded.

    Raises UsageError for a model without kind and settings and for a suffix that names no format,
    CheckpointError if the file can't be written.
    """
    model = unwrapped(model)
    if not isinstance(model, Stored):
        raise UsageError(f"a {type(model).__name__} can't be stored: it has no kind and no config")
    settings = model.config.model_dump(mode="json")
    origin = getattr(model, "provenance", None) if provenance is None else provenance
    exact = {
        plain_name(f"{home}.{name}")
        for home, module in model.named_modules()
        if getattr(module, "stored_exactly", False)
        for name in module.state_dict()
    }
    save_checkpoint(path, model.kind, settings, plain_names(model.state_dict()), origin, dtype, exact)


def load_model(path: str | Path, kind: str | None = None) -> nn.Module:
    """Rebuilds a model from its file: in float32 on the CPU, in eval mode.

    What the file says of its origin is kept as `model.provenance`. A file that `save_model` didn't write, such as a
    state dict or a trainer's whole state, is read where it says enough, see `models/unlabelled.py`.

    Raises CheckpointError if the file is missing, damaged, of another kind than `kind`, of an unknown kind, or
    if its settings and tensors don't fit each other; UsageError for a suffix that names no format.
    """
    checkpoint = read(path, kind)
    model = weightless(checkpoint, path)
    give_memory(model)
    load_tensors(model, checkpoint.tensors, path)
    return model


def read(path: str | Path, kind: str | None = None) -> Checkpoint:
    """A file's settings and tensors, whoever wrote it; it raises what `load_model` raises."""
    try:
        return load_checkpoint(path, kind)
    except NoHeader as unlabelled:
        from dalle_2.models.unlabelled import labelled

        return labelled(Path(path), kind, unlabelled)


def shelved(path: str | Path, kind: str | None = None) -> Shelved:
    """The model of a file that may be built without its weights. It raises what `load_model` raises."""
    return Shelved(partial(_lean, path, kind), partial(_weights, path, kind))


def _lean(path: str | Path, kind: str | None) -> nn.Module:
    return weightless(read(path, kind), path)


def weightless(checkpoint: Checkpoint, path: str | Path) -> nn.Module:
    """The model without weights, once its settings and the file's tensors are known to fit each other."""
    model = built_bare(checkpoint.kind, checkpoint.config, len(checkpoint.tensors), path)
    check_tensors(model, checkpoint.tensors, path)
    model.provenance = checkpoint.provenance  # type: ignore[assignment]
    return model.eval()


def _weights(path: str | Path, kind: str | None, model: nn.Module) -> dict[str, Tensor]:
    tensors = read(path, kind).tensors
    return {name: like(tensors[name].to(own.dtype), own) for name, own in model.state_dict().items()}


def built_bare(kind: str, settings: Mapping[str, Any], weights: int, where: str | Path) -> nn.Module:
    """The model of a kind without weights, from settings as they were stored beside so many.

    Raises CheckpointError, naming `where` they came from.
    """
    return empty_of(lambda: _untrained(kind, settings, where=str(where)), weights, where)


def _untrained(kind: str, settings: Mapping[str, Any], *, where: str) -> nn.Module:
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(f"{where} holds a {kind[:80]!r}, and this release knows {known}: upgrade dalle_2")
    home = importlib.import_module(KINDS[kind].module)
    try:
        config = parse(getattr(home, KINDS[kind].settings), {**OLDER.get(kind, {}), **settings})
        return getattr(home, KINDS[kind].model).from_config(config)
    except (ConfigError, UsageError) as error:
        raise CheckpointError(f"the settings in {where} don't describe a {kind}: {error}") from None
