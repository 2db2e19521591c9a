"""A model in one file that can run no code: kind, settings, tensors and where they come from.

`.safetensors` keeps everything but the tensors as JSON in its header, under one key. `.pth` holds the same as plain
values.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dalle_2.errors import CheckpointError, UsageError
from dalle_2.paths import atomic_path
from dalle_2.weights.prefixes import plain_name, plain_names
from dalle_2.weights.safetensors_file import write_safetensors

FORMAT = "dalle_2"
FORMAT_VERSION = 2
SAFETENSORS = (".safetensors",)
PICKLED = (".pth", ".pt", ".bin")
_quiet = Lock()  # what is done about warnings holds for all threads
HEADER = {"format_version": int, "kind": str, "config": dict, "provenance": dict}


class NoHeader(CheckpointError):
    """A sound file that this package didn't write: nothing in it says what its weights are of."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a weight file holds. `config` and `provenance` are plain JSON values."""

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]
    format_version: int = FORMAT_VERSION


def _grid_of_means(checkpoint: Checkpoint) -> Checkpoint:
    """In version 1 the pool "grid" added the mean of all patches; that is "grid_mean" now."""
    if "vision.projection.mean.weight" not in checkpoint.tensors:
        return checkpoint
    vision = {**checkpoint.config["vision"], "pool": "grid_mean"}
    return replace(checkpoint, config={**checkpoint.config, "vision": vision})


# From version n to n + 1. A change of the format adds one entry and raises FORMAT_VERSION.
MIGRATIONS: dict[int, Callable[[Checkpoint], Checkpoint]] = {1: _grid_of_means}


def save_checkpoint(
    path: str | Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    exact: Collection[str] = (),
) -> None:
    """Writes a checkpoint in the format that the suffix names; `dtype` is for floating-point tensors only.

    exact: names of tensors that keep their own.

    Raises UsageError for another suffix, CheckpointError if it can't be written; an older file stays whole.
    """
    path = Path(path)
    _check_suffix(path, (*SAFETENSORS, *PICKLED[:2]))
    plain = {name: _plain(tensor, None if name in exact else dtype) for name, tensor in tensors.items()}
    checkpoint = Checkpoint(kind, dict(config), plain, dict(provenance or {}))
    write = _write_safetensors if path.suffix in SAFETENSORS else _write_pickled
    try:
        with atomic_path(path) as temporary:
            write(temporary, checkpoint)
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError, safetensors as its own error.
        reason = getattr(error, "strerror", None) or error
        kept = "; the older file is unchanged" if path.exists() else ""
        raise CheckpointError(f"{path} could not be written: {reason}{kept}") from error


def load_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """Reads a checkpoint; tensors of a safetensors file are mapped, not copied.

    Raises CheckpointError if the file is missing, damaged, of another kind than `kind`, or of a newer format.
    """
    path = Path(path)
    _check_suffix(path, (*SAFETENSORS, *PICKLED))
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    header, tensors = _read_safetensors(path) if path.suffix in SAFETENSORS else _read_pickled(path)
    checkpoint = _migrated(_checkpoint(header, tensors, path), path)
    if kind is not None and checkpoint.kind != kind:
        raise CheckpointError(f"{path} holds a {checkpoint.kind}, but a {kind} was expected")
    return checkpoint


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Only the tensors of any safetensors file or of a pickled one without code. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    if path.suffix in SAFETENSORS:
        return _read_safetensors(path)[1]
    content = unpickled(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no table of tensors")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copies `tensors` into `module`, in the module's dtype, whatever wraps either. `source` names them in the message.

    Raises CheckpointError naming missing, superfluous and mis-shaped tensors; the module is then unchanged.
    """
    check_tensors(module, tensors, source)
    plain = plain_names(tensors)
    module.load_state_dict({name: plain[plain_name(name)] for name in module.state_dict()})


def check_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises CheckpointError naming missing, superfluous and mis-shaped tensors, and those of another kind of numbers;
    of their data nothing is read."""
    own, tensors = plain_names(module.state_dict()), plain_names(tensors)
    problems = [
        *listed("missing", [name for name in own if name not in tensors]),
        *listed("not known here", [name for name in tensors if name not in own]),
        *listed(
            "of another shape", [_shapes(n, tensors[n], own[n]) for n in own if _differs(n, tensors, own)]
        ),
        *listed("of other numbers", [_numbers(n, tensors[n], own[n]) for n in own if _counts(n, tensors, own)]),
    ]
    if problems:
        raise CheckpointError(
            f"the tensors of {source} don't fit {type(module).__name__}: {'; '.join(problems)}"
        )


def like(value: Tensor, own: Tensor) -> Tensor:
    """A weight in the memory format of a module's own; it isn't copied if it has that."""
    last = own.ndim == 4 and own.is_contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def listed(title: str, names: list[str], most: int = 20) -> list[str]:
    """A title with the first names under it and how many there are; nothing for none."""
    if not names:
        return []
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return [f"{title} ({len(names)}): {', '.join(names[:most])}{rest}"]


def _differs(name: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return name in tensors and tensors[name].shape != own[name].shape


def _shapes(name: str, came: Tensor, expected: Tensor) -> str:
    return f"{name} is {tuple(came.shape)} instead of {tuple(expected.shape)}"


def _counts(name: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether one holds whole numbers where the other holds fractions: a table of counts is no weight."""
    return name in tensors and tensors[name].is_floating_point() != own[name].is_floating_point()


def _numbers(name: str, came: Tensor, expected: Tensor) -> str:
    kinds = (str(tensor.dtype).removeprefix("torch.") for tensor in (came, expected))
    return f"{name} is {' instead of '.join(kinds)}"


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.to(dtype if tensor.is_floating_point() else None).contiguous()


def _check_suffix(path: Path, known: tuple[str, ...]) -> None:
    if path.suffix not in known:
        raise UsageError(f"{path} has the suffix {path.suffix!r}: a weight file ends in {' or '.join(known)}")


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    header = {
        "format_version": checkpoint.format_version,
        "kind": checkpoint.kind,
        "config": checkpoint.config,
        "provenance": checkpoint.provenance,
    }
    # By way of JSON, so that both formats hold the same plain values.
    return json.loads(json.dumps(header))


def _write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    write_safetensors(path, checkpoint.tensors, {FORMAT: json.dumps(_header(checkpoint))})


def _write_pickled(path: Path, checkpoint: Checkpoint) -> None:
    # Through a handle: given a path, torch.save would write its random name into the file.
    with path.open("wb") as file:
        torch.save({FORMAT: _header(checkpoint), "tensors": checkpoint.tensors}, file)


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Our header, None if the file has none, and the tensors."""
    require_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return header and json.loads(header), tensors
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated, damaged or not a safetensors file ({error})") from None


def _read_pickled(path: Path) -> tuple[Any, dict[str, Tensor]]:
    content = unpickled(path)
    if not isinstance(content, dict) or not isinstance(content.get("tensors"), dict):
        raise NoHeader(f"{path} is not a checkpoint of this package: it has no table of tensors")
    return content.get(FORMAT), content["tensors"]


def unpickled(path: Path) -> Any:
    """What torch.save wrote, of plain values and tensors alone. Raises CheckpointError."""
    require_readable(path)
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other versions: it is read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} was refused because it is damaged or holds more than plain values and tensors, and loading that "
            "could run code: write a model anew with dalle_2.save_model(model, path), which keeps its settings, too"
        ) from None
    except Exception as error:  # bytes that are no pickle can end in any error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is truncated, damaged or not a file of torch.save ({reason})"
        ) from None


def require_readable(path: Path) -> None:
    """Raises CheckpointError for a file that may not be read, of which libraries say other things."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None


def _checkpoint(header: Any, tensors: dict[str, Tensor], path: Path) -> Checkpoint:
    if not isinstance(header, dict):
        raise NoHeader(
            f"{path} is not a checkpoint of this package: its header has no {FORMAT!r} entry"
        )
    lacking = [key for key, kind in HEADER.items() if not isinstance(header.get(key), kind)]
    if lacking:
        raise CheckpointError(
            f"the header of {path} is damaged: {', '.join(lacking)} is missing or of a wrong type"
        )
    return Checkpoint(tensors=plain_names(tensors), **{key: header[key] for key in HEADER})


def _migrated(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    version = checkpoint.format_version
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, and this release reads up to {FORMAT_VERSION}: "
            "upgrade dalle_2"
        )
    for older in range(version, FORMAT_VERSION):
        if older not in MIGRATIONS:
            raise CheckpointError(f"{path} has format version {version}, which this release can't migrate")
        checkpoint = replace(MIGRATIONS[older](checkpoint), format_version=older + 1)
    return checkpoint
