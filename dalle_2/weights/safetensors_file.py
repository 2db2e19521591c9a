"""A safetensors file as it is written here: its tensors begin at multiples of 64 bytes, to be mapped and computed with.

The format knows no gaps between tensors, and its own library puts the data behind a header of any length. Here the
header is filled up with spaces, and tensors whose size is no multiple of 64 come last, behind all others.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dalle_2.weights.aligned import ALIGNMENT

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor as the header describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def laid_out(entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> tuple[bytes, dict[str, int]]:
    """The header of a file, and where in the file each tensor begins."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    places, end = {}, 0
    for name, entry in sorted(entries.items(), key=_rank):
        places[name] = end
        end += entry.bytes
        header[name] = {"dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [places[name], end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-(len(told) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(told)) + told, {name: 8 + len(told) + place for name, place in places.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors of this machine's memory; the same ones make the same bytes. Raises OSError."""
    header, places = laid_out(
        {name: Entry(value.dtype, tuple(value.shape)) for name, value in tensors.items()}, metadata
    )
    with path.open("wb") as file:
        file.write(header)
        for name in places:
            file.write(raw(tensors[name]))


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor's numbers in the order of its sides, whatever their order in memory."""
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _rank(item: tuple[str, Entry]) -> tuple[bool, int, str]:
    """The widest numbers come first among those that don't fill lines, so that each lies at a multiple of its width."""
    name, entry = item
    return entry.bytes % ALIGNMENT != 0, -entry.dtype.itemsize, name
