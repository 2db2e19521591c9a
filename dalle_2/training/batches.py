"""Batches as callers make them: of arrays or tensors, clean or noised; brought into one form, or refused in words."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from dalle_2.errors import UsageError

Batch = dict[str, Tensor]
Shape = tuple[int | None, ...]  # of one row; None for any length

NOISED = ("z_t", "x_t")  # of which a batch has one if somebody noised it already
PICTURES = ("image", "x_0")
BRIGHTEST = 10.0  # no clean picture in [-1, 1] comes near that, and neither does noise in the place of one


def as_batch(given: Any) -> Batch:
    """The tensors of a batch, of NumPy's arrays too. Raises UsageError for what is no dict of these.

    Entries that have no rows, as a number for all of them, are left out.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"a batch must be a dict of tensors, got a {type(given).__name__}: name its parts")
    tensors = {str(name): torch.from_numpy(x) if _is_numeric(x) else x for name, x in given.items()}
    batch = {name: x for name, x in tensors.items() if isinstance(x, Tensor) and x.ndim}
    if not batch:
        raise UsageError(f"a batch must hold tensors, got {', '.join(map(str, given)) or 'an empty dict'}")
    return batch


def _is_numeric(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def rows_of(batch: Batch) -> int:
    """How many rows a batch has."""
    return len(next(iter(batch.values())))


def is_noised(batch: Batch) -> bool:
    """Whether somebody noised a batch already, so that it goes to the loss as it is."""
    return "t" in batch and any(name in batch for name in NOISED)


def fitted(model: nn.Module, batch: Batch) -> Batch:
    """A batch in the form that the model wants: a timestep a row, whole numbers as such, bytes of pictures in [-1, 1].

    Raises UsageError, in one sentence, for entries of other shapes than the model's settings say, for pictures outside
    of [-1, 1], and for timesteps that are no whole numbers or that the noise table lacks.
    """
    shapes = row_shapes(model)
    if shapes:
        dtype = next(model.parameters()).dtype
        ours = shapes.keys() | set(PICTURES)  # loaders may hand pictures to a prior, too
        batch = {name: _in_form(name, value, dtype) if name in ours else value for name, value in batch.items()}
        rows = next((len(value) for name, value in batch.items() if name in shapes), rows_of(batch))
        batch = {name: value for name, value in batch.items() if name in shapes or len(value) == rows}
        _check_shapes(model, batch, {name: (rows, *shape) for name, shape in shapes.items()})
    check_timesteps(model, batch)
    return batch


def row_shapes(model: nn.Module) -> dict[str, Shape]:
    """What each entry of a batch must be for one row, by the model's settings; nothing for models of others."""
    kind: str = getattr(model, "kind", "")
    config: Any = getattr(model, "config", None)
    space: Any = getattr(model, "space", None)
    if kind == "prior":
        text, image = (config.dim,), (space.width,)
        return {"z_txt": text, "z_img": text, "t": (), **dict.fromkeys(("z_t", "eps", "x_0", "v"), image)}
    if kind == "autoregressive_prior":
        return dict.fromkeys(("z_txt", "z_img"), (config.dim,))
    if kind == "clip":
        side = config.vision.image_size
        return {"image": (3, side, side), "tokens": (None,)}
    if kind in ("draft", "decoder"):
        return {"z_img": (space.dim,), **_pictures(config.image_size)}
    if kind == "upsampler":
        shapes: dict[str, Shape] = {**_pictures(None), "low_res": (3, None, None)}
        return shapes if space is None else {"z_img": (space.dim,), **shapes}
    return {}


def _pictures(side: int | None) -> dict[str, Shape]:
    names = ("image", "x_t", "x_0", "eps", "v")
    return {"t": (), "hole": (1, side, side), **dict.fromkeys(names, (3, side, side))}


def _in_form(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if name == "tokens":
        return value.long()
    if name == "t":
        value = value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value
        return value.long() if not value.is_floating_point() or bool((value == value.floor()).all()) else value
    if name == "image" and value.dtype == torch.uint8:
        last = value.ndim == 4 and value.shape[-1] == 3 and value.shape[1] != 3
        value = (value.permute(0, 3, 1, 2) if last else value).contiguous().float() / 127.5 - 1
    return value if value.dtype == torch.bool else value.to(dtype)


def _check_shapes(model: nn.Module, batch: Batch, wanted: Mapping[str, Shape]) -> None:
    known = {name: value for name, value in batch.items() if name in wanted}
    for name, value in known.items():
        shape = wanted[name]
        fits = len(shape) == value.ndim and all(a in (None, b) for a, b in zip(shape, value.shape, strict=True))
        if not fits:
            _refuse(model, name, value, "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")")
    if model.kind == "upsampler":
        _check_upsampled(model, known)
    for name in PICTURES:
        if name in known and known[name].ndim == len("bchw"):  # to a prior, x_0 is an embedding
            _check_range(name, known[name])


def _check_upsampled(model: Any, batch: Batch) -> None:
    """An upsampler crops large pictures itself, so that several sizes fit it."""
    least, scale = model.config.crop or model.config.image_size, model.config.scale
    for name in ("image", "x_t"):
        if name in batch and (min(batch[name].shape[2:]) < least or batch[name].shape[2] != batch[name].shape[3]):
            _refuse(model, name, batch[name], f"squares of at least {least} px")
    if {"x_t", "low_res"} <= batch.keys() and batch["x_t"].shape[2] != scale * batch["low_res"].shape[2]:
        _refuse(model, "low_res", batch["low_res"], f"a side of {batch['x_t'].shape[2] // scale} px under this x_t")


def _refuse(model: nn.Module, name: str, value: Tensor, wanted: str) -> NoReturn:
    raise UsageError(
        f"{name} of the batch has shape {tuple(value.shape)}, but the {model.kind} takes {wanted} by its settings: "
        f"{_cure(name)}"
    )


def _cure(name: str) -> str:
    if name in ("z_txt", "z_img", "z_t"):
        return "give one embedding a row, of the CLIP that the settings are made for"
    return "give one a row, resized to that" if name in ("image", "x_t", "x_0", "hole", "low_res") else "give one a row"


def _check_range(name: str, value: Tensor) -> None:
    low, high = (float(edge) for edge in value.aminmax())
    largest = max(-low, high)
    if BRIGHTEST < largest < math.inf:  # what is not finite the loop counts
        raise UsageError(
            f"{name} of the batch must hold pictures in [-1, 1], got numbers from {low:g} to {high:g}: "
            "of 0 ... 255 make x / 127.5 - 1"
        )


def check_timesteps(model: nn.Module, batch: Batch) -> None:
    """Refuses timesteps that the model's noise table lacks, which its embedding would take without a word."""
    own = getattr(model, "noise_scheduler", None)
    if own is not None and "t" in batch:
        t = batch["t"]
        own.check(t)
        if t.is_floating_point():
            raise UsageError(f"t must hold whole numbers, got {t[t != t.floor()][0].item()}: one timestep a row")


def micro_batches(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """The batch in at most `count` parts, each with its share of the rows."""
    size = rows_of(batch)
    step = -(-size // count)
    for start in range(0, size, step):
        part = {name: value[start : start + step] for name, value in batch.items()}
        yield part, rows_of(part) / size
