"""The tensors of a whole module that torch.save wrote, without running any of it.

Such a file names classes and has them built, which is to run whatever it names. Here every class of a network is read
as a bare record, tensors as where their numbers lie, and a file that names anything else is refused. Both of
torch.save's forms are read: the archive, and the row of pickles from before PyTorch 1.6.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dalle_2.errors import CheckpointError
from dalle_2.weights.checkpoint import require_readable

DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
}  # fmt: skip
OLD_MAGIC = 0x1950A86A20F9469CFC6C
Raw = Mapping[str, bytes]


class Record:
    """A module or a part of one: its attributes, and none of its behaviour."""


class Storage(NamedTuple):
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: torch.dtype


class View(NamedTuple):
    """A tensor over them."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self, raw: Raw) -> Tensor:
        """With numbers of its own."""
        flat = torch.frombuffer(bytearray(raw[self.storage.key]), dtype=self.storage.dtype)
        return flat.as_strided(self.size, self.stride, self.offset).clone()


def module_tensors(path: str | Path, packages: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of the module in a file, by the names that its state_dict would have.

    packages: whose classes it may be built of, beside those of torch.nn. Raises CheckpointError for a file that is
    missing or damaged, and for one that names anything but such classes, tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    require_readable(path)
    try:
        root, raw = (_archive if zipfile.is_zipfile(path) else _row_of_pickles)(path, packages)
        views = dict(_views(root, ""))
        return {name: view.tensor(raw) for name, view in views.items()}
    except Refused as error:
        raise CheckpointError(f"{path} was refused because it names {error}, and loading that could run code") from None
    except Exception as error:  # bytes that are no pickle can end in any error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated, damaged or no module of torch.save ({reason})") from None


class Refused(pickle.UnpicklingError):
    """A name that a network has no use for."""


class Reader(pickle.Unpickler):
    """Builds records, views and plain containers, and nothing else."""

    def __init__(self, file: Any, packages: tuple[str, ...]) -> None:
        super().__init__(file, encoding="utf-8")
        self.packages = ("torch.nn.modules", *packages)

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the file; nothing is imported."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if any(module == package or module.startswith(f"{package}.") for package in self.packages):
            return Record
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or in old files a class with its source, which is not read."""
        if pid[0] == "module":
            return pid[1]
        dtype, key = pid[1:3]
        return Storage(str(key), dtype)


def _view(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> View:
    return View(storage, offset, tuple(size), tuple(stride))


def _parameter(view: View, *_: Any) -> View:
    return view


def _nothing(*_: Any) -> None:
    return None


PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict, ("builtins", "set"): set, ("__builtin__", "set"): set,
    ("torch", "device"): _nothing, ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}  # fmt: skip


def _archive(path: Path, packages: tuple[str, ...]) -> tuple[Any, Raw]:
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        home = index.removesuffix(".pkl")
        with archive.open(index) as file:
            root = Reader(file, packages).load()
        names = (name for name in archive.namelist() if name.startswith(f"{home}/"))
        return root, {name.removeprefix(f"{home}/"): archive.read(name) for name in names}


def _row_of_pickles(path: Path, packages: tuple[str, ...]) -> tuple[Any, Raw]:
    with path.open("rb") as file:
        magic, _, system, root, keys = (Reader(file, packages).load() for _ in range(5))
        if magic != OLD_MAGIC or not system["little_endian"]:
            raise ValueError("it begins otherwise")
        sizes = {view.storage.key: view.storage.dtype.itemsize for _, view in _views(root, "")}
        raw = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            raw[key] = file.read(count * sizes[key])
        return root, raw


def _views(node: Any, name: str) -> Iterator[tuple[str, View]]:
    """The tensors of a module and of those in it."""
    own = vars(node)
    for kind in ("_parameters", "_buffers"):
        yield from ((name + key, view) for key, view in own[kind].items() if isinstance(view, View))
    for key, child in own["_modules"].items():
        if child is not None:
            yield from _views(child, f"{name}{key}.")
