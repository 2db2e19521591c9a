"""The tensors of a whole module that torch.save wrote, without running any of it.

Such a file names classes and has them built, which is to run whatever it names. Here every class of a network is read
as a bare record, tensors as where their numbers lie, and a file that names anything else is refused. Both of
torch.save's forms are read: the archive, and the row of pickles from before PyTorch 1.6.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle_2.errors import CheckpointError
from dalle_2.weights.archive import check_readable, is_archive
from dalle_2.weights.checkpoint import first_line
from dalle_2.weights.records import Reader, Refused, View

OLD_MAGIC = 0x1950A86A20F9469CFC6C
MOST_PICKLED = 2**21  # bytes of all that isn't numbers: a network of a thousand layers has a quarter of that
MOST_TENSORS = 2**14
Raw = Callable[[str, torch.dtype], bytearray]  # the numbers of a storage, by its key


def module_tensors(path: str | Path, packages: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of the module in a file, by the names that its state_dict would have.

    Several may share their numbers, as they do in the file; none is larger than it claims to be before someone copies
    it, so that their shapes are to be checked first.

    packages: whose classes it may be built of, beside those of torch.nn. Raises CheckpointError for a file that is
    missing or damaged, and for one that names anything but such classes, tensors and plain containers.
    """
    path = Path(path)
    check_readable(path)
    read = _archive if is_archive(path) else _row_of_pickles
    try:
        return read(path, packages)
    except Refused as error:
        raise CheckpointError(f"{path} was refused because it names {error}, and loading that could run code") from None
    except Exception as error:  # bytes that are no pickle can end in any error
        raise CheckpointError(
            f"{path} is truncated, damaged or no module of torch.save ({first_line(error)})"
        ) from None


def _archive(path: Path, packages: tuple[str, ...]) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        (index,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
        root = Reader(io.BytesIO(_entry(archive, index, MOST_PICKLED)), packages).load()
        home = index.filename.removesuffix(".pkl")
        return _tensors(root, lambda key, _: _entry(archive, archive.getinfo(f"{home}/{key}"), path.stat().st_size))


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytearray:
    """An entry's bytes, which are not packed, up to the size that is stated."""
    if entry.file_size > most:
        raise ValueError(f"{entry.filename[:100]} claims {entry.file_size:,} bytes of at most {most:,}")
    with archive.open(entry) as file:
        return bytearray(file.read(entry.file_size))


def _row_of_pickles(path: Path, packages: tuple[str, ...]) -> dict[str, Tensor]:
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MOST_PICKLED))
        magic, _, system, root, keys = (Reader(head, packages).load() for _ in range(5))
        if magic != OLD_MAGIC or not system["little_endian"]:
            raise ValueError("it begins otherwise")
        file.seek(head.tell())
        sizes = {view.storage.key: view.storage.dtype.itemsize for _, view in _views(root)}
        raw = {key: _stored(file, sizes[key]) for key in dict.fromkeys(keys)}
        return _tensors(root, lambda key, _: raw[key])


def _stored(file: io.BufferedReader, width: int) -> bytearray:
    """The numbers that come next, behind how many they are."""
    (count,) = struct.unpack("<q", file.read(8))
    place = file.tell()
    left = file.seek(0, io.SEEK_END) - place
    if not 0 <= count * width <= left:
        raise ValueError(f"it claims {count:,} numbers where {left:,} bytes are left")
    file.seek(place)
    return bytearray(file.read(count * width))


def _tensors(root: Any, raw: Raw) -> dict[str, Tensor]:
    """Each storage is read once, and of the tensors over it nothing is copied."""
    views, flat = dict(_views(root)), dict[tuple[str, torch.dtype], Tensor]()
    for view in views.values():
        if view.storage not in flat:
            flat[view.storage] = torch.frombuffer(raw(*view.storage), dtype=view.storage.dtype)
    return {name: flat[view.storage].as_strided(view.size, view.stride, view.offset) for name, view in views.items()}


def _views(root: Any) -> Iterator[tuple[str, View]]:
    """The tensors of a module and of those in it, as many as a network can have."""
    left, seen = [("", root)], 0
    while left:
        name, node = left.pop()
        own = vars(node)
        for kind in ("_parameters", "_buffers"):
            for key, view in own[kind].items():
                if isinstance(view, View):
                    yield f"{name}{key}", view
        left += [(f"{name}{key}.", child) for key, child in own["_modules"].items() if child is not None]
        seen += 1 + len(own["_parameters"])
        if seen + len(left) > MOST_TENSORS or len(name) > 1000:
            raise ValueError("it has more parts than a network has")
