"""Weights that were changed to be computed with, kept in a file to be mapped, so that they are no memory of our own.

A copy is a cache: made when first wanted, named by what it was made of, and made anew where it doesn't fit. The
weights of convolutions lie in it channels last, the order in which they are computed.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dalle_2.paths import atomic_path
from dalle_2.weights.safetensors_file import Entry, laid_out, raw

LEAST_BYTES = 64 * 2**20  # a smaller part is as well off in memory
LAYOUT = 2  # raised with every change of how a copy is written
FORGOTTEN = 3600  # seconds after which what an interrupted run has left is removed


class Form(NamedTuple):
    """What a weight is to be. last: channels last."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    last: bool

    @classmethod
    def of(cls, own: Tensor, dtype: torch.dtype) -> "Form":
        """That of a module's own, which may lie on the meta device, in another dtype."""
        last = own.ndim == 4 and own.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(own.shape), dtype, last)

    @property
    def stored(self) -> list[int]:
        """The shape that it has in the file."""
        return [self.shape[at] for at in (0, 2, 3, 1)] if self.last else list(self.shape)

    @property
    def bytes(self) -> int:
        """Its size."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


Pieces = Callable[[], Iterable[Mapping[str, Tensor]]]


def kept(
    folder: Path, part: str, sources: Sequence[Path], forms: Mapping[str, Form], made: Pieces, settings: str = ""
) -> dict[str, Tensor] | None:
    """The weights of a part, mapped, from the copy in `folder`; one is written first where there is none.

    part: its name and its dtype, joined by a hyphen. sources: the files that they are made of. made: some of them at a
    time, in any memory format. settings: whatever else they hang on. Two processes that need the same copy at the same
    time write one each, and the second takes the name.

    None where a copy isn't worth its room or can't be written: little of it, a disk with too little room, a folder that
    is read only.
    """
    size = sum(form.bytes for form in forms.values())
    if size < LEAST_BYTES:
        return None
    path = folder / f"{part}-{_key(sources, forms, settings)}.safetensors"
    if (found := _mapped(path, forms)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, part, path)
        if shutil.disk_usage(folder).free < 2 * size:
            return None
        return _written(path, forms, made())
    except OSError:
        return None


def _key(sources: Sequence[Path], forms: Mapping[str, Form], settings: str) -> str:
    """A name for what the copy is made of: other files, or the same changed, have another."""
    known = [(path.resolve(), path.stat()) for path in sources]
    files = [(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for path, stat in known]
    told = json.dumps([LAYOUT, settings, files, sorted((name, str(form)) for name, form in forms.items())])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _mapped(path: Path, forms: Mapping[str, Form]) -> dict[str, Tensor] | None:
    """What lies there, None where it isn't whole or isn't what is wanted."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError, RuntimeError):  # the last of a mapping that the system refuses
        return None
    fits = stored.keys() == forms.keys() and all(
        (list(value.shape), value.dtype) == (forms[name].stored, forms[name].dtype) for name, value in stored.items()
    )
    return {name: x.permute(0, 3, 1, 2) if forms[name].last else x for name, x in stored.items()} if fits else None


def _written(path: Path, forms: Mapping[str, Form], pieces: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
    """Writes the copy and maps it; it takes its name once it is safe on the disk, which only the end of the process
    waits for."""
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        header, places = laid_out({name: Entry(form.dtype, tuple(form.stored)) for name, form in forms.items()})
        with temporary.open("wb") as file:
            file.write(header)
            for piece in pieces:
                for name, value in piece.items():
                    file.seek(places[name])
                    file.write(_bytes(value, forms[name]))
        found = _mapped(temporary, forms)
        settling = stack.pop_all()
    try:
        Thread(target=_settle, args=[settling], name=f"settle {path.name}").start()
    except RuntimeError:  # there may be no more of them
        _settle(settling)
    return found


def _settle(settling: ExitStack) -> None:
    with suppress(OSError):
        settling.close()


def _bytes(value: Tensor, form: Form) -> Any:
    value = value.to(form.dtype)
    return raw(value.permute(0, 2, 3, 1) if form.last else value)


def _clear(folder: Path, part: str, path: Path) -> None:
    """Removes copies of the part that were made of other files, and what interrupted runs have left."""
    dated = [other for other in folder.glob(f"{part}-*.safetensors") if other != path]
    left = [other for other in folder.glob(f".{part}-*.safetensors") if time.time() - other.stat().st_mtime > FORGOTTEN]
    for other in (*dated, *left):
        with suppress(OSError):
            os.unlink(other)
