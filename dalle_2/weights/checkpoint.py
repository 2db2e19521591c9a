"""A model in one file that can run no code: kind, settings, tensors and where they come from.

`.safetensors` keeps everything but the tensors as JSON in its header, under one key. `.pth` holds the same as plain
values.
"""

import json
import pickle
import warnings
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
from dalle_2.weights.archive import check_readable, is_archive
from dalle_2.weights.founded import unfounded
from dalle_2.weights.listing import listed
from dalle_2.weights.narrowing import narrowed
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
    if not isinstance(vision := checkpoint.config.get("vision"), dict):
        return checkpoint  # damaged, which whoever parses the settings says
    vision = {**vision, "pool": "grid_mean"}
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

    exact: names of tensors that keep their own. A tensor that `dtype` doesn't hold is kept in float32, with a warning.

    Raises UsageError for another suffix, CheckpointError if it can't be written; an older file stays whole.
    """
    path = Path(path)
    _check_suffix(path, (*SAFETENSORS, *PICKLED[:2]))
    plain = narrowed(tensors, dtype, path, exact)
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
    check_readable(path)
    header, tensors = _read_safetensors(path) if path.suffix in SAFETENSORS else _read_pickled(path)
    checkpoint = _migrated(_checkpoint(header, tensors, path), path)
    if kind is not None and checkpoint.kind != kind:
        raise CheckpointError(f"{path} holds a {checkpoint.kind[:80]}, but a {kind} was expected")
    return checkpoint


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Only the tensors of any safetensors file or of a pickled one without code. Raises CheckpointError."""
    path = Path(path)
    check_readable(path)
    if path.suffix in SAFETENSORS:
        return _read_safetensors(path)[1]
    content = unpickled(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no table of tensors")
    return tensors_of(content)


def tensors_of(table: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Those of a table's entries that are tensors with a name."""
    return {name: value for name, value in table.items() if isinstance(name, str) and isinstance(value, Tensor)}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copies `tensors` into `module`, in the module's dtype, whatever wraps either. `source` names them in the message.

    Raises CheckpointError naming missing, superfluous and mis-shaped tensors; the module is then unchanged.
    """
    check_tensors(module, tensors, source)
    plain = plain_names(tensors)
    module.load_state_dict({name: plain[plain_name(name)] for name in module.state_dict()})


def check_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises CheckpointError naming tensors that are missing, superfluous, mis-shaped or no such numbers as the
    module's; of their data nothing is read."""
    own, tensors = plain_names(module.state_dict()), plain_names(tensors)
    shared = [name for name in own if name in tensors]
    problems = [
        *listed("missing", [name for name in own if name not in tensors]),
        *listed("not known here", [name for name in tensors if name not in own]),
        *listed(
            "of another shape", [_shapes(n, tensors[n], own[n]) for n in shared if tensors[n].shape != own[n].shape]
        ),
        *listed("of other numbers", [_numbers(n, tensors[n], own[n]) for n in shared if _kind(tensors[n], own[n])]),
        *unfounded(tensors),
    ]
    if problems:
        raise CheckpointError(f"the tensors of {source} don't fit {type(module).__name__}: {'; '.join(problems)}")


def like(value: Tensor, own: Tensor) -> Tensor:
    """A weight in the memory format of a module's own; it isn't copied if it has that."""
    last = own.ndim == 4 and own.is_contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _shapes(name: str, came: Tensor, expected: Tensor) -> str:
    return f"{name} is {tuple(came.shape)} instead of {tuple(expected.shape)}"


def _numbers(name: str, came: Tensor, expected: Tensor) -> str:
    return f"{name} is {str(came.dtype).removeprefix('torch.')} instead of {str(expected.dtype).removeprefix('torch.')}"


def _kind(came: Tensor, expected: Tensor) -> bool:
    """Whether whole numbers stand for those with a point, or the other way."""
    return came.is_complex() or came.is_floating_point() != expected.is_floating_point()


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
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return header and json.loads(header), tensors
    except Exception as error:  # the library's, Python's for settings that are no JSON, and the system's
        raise CheckpointError(f"{path} is truncated, damaged or not a safetensors file ({first_line(error)})") from None


def _read_pickled(path: Path) -> tuple[Any, dict[str, Tensor]]:
    content = unpickled(path)
    if not isinstance(content, dict) or not isinstance(content.get("tensors"), dict):
        raise NoHeader(f"{path} is not a checkpoint of this package: it has no table of tensors")
    return content.get(FORMAT), tensors_of(content["tensors"])


def unpickled(path: Path) -> Any:
    """What torch.save wrote, of plain values and tensors alone. Raises CheckpointError."""
    check_readable(path)
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other versions: it is read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive(path))
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} was refused because it is damaged or holds more than plain values and tensors, and loading that "
            "could run code: write a model anew with dalle_2.save_model(model, path), which keeps its settings, too"
        ) from None
    except Exception as error:  # bytes that are no pickle can end in any error
        raise CheckpointError(
            f"{path} is truncated, damaged or not a file of torch.save ({first_line(error)})"
        ) from None


def first_line(error: Exception) -> str:
    """What a library said, in a line that fits into a sentence; the error's name where it said nothing."""
    return str(error).partition("\n")[0][:300] or type(error).__name__


def _checkpoint(header: Any, tensors: dict[str, Tensor], path: Path) -> Checkpoint:
    if not isinstance(header, dict):
        raise NoHeader(f"{path} is not a checkpoint of this package: its header has no {FORMAT!r} entry")
    lacking = [key for key, kind in HEADER.items() if not isinstance(header.get(key), kind)]
    if lacking:
        raise CheckpointError(f"the header of {path} is damaged: {', '.join(lacking)} is missing or of a wrong type")
    return Checkpoint(tensors=plain_names(tensors), **{key: header[key] for key in HEADER})


def _migrated(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    version = checkpoint.format_version
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, and this release reads up to {FORMAT_VERSION}: upgrade dalle_2"
        )
    for older in range(version, FORMAT_VERSION):
        if older not in MIGRATIONS:
            raise CheckpointError(f"{path} has format version {version}, which this release can't migrate")
        checkpoint = replace(MIGRATIONS[older](checkpoint), format_version=older + 1)
    return checkpoint
