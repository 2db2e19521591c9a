"""CLIP embeddings of a data set, computed once and kept in memory-mapped files.

A store is a folder:

    z_img.npy  z_txt.npy   one row a picture, float16 or float32, ordinary NumPy files
    manifest.json          what the rows are: encoder, data, how many of them are written

A build that was interrupted goes on behind the last finished chunk, and the finished files are the same to
the last byte.
"""

import hashlib
import io
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, ValidationError, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from dalle_2.config import Settings, describe
from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import data_fingerprint, to_image_tensor
from dalle_2.errors import DataError, UsageError
from dalle_2.paths import atomic_write_text

FORMAT = 1
ARRAYS = ("z_img", "z_txt")
MANIFEST = "manifest.json"

# rows -> (z_img, z_txt), each (len(rows), dim), as tensors or arrays
Encode = Callable[[range], tuple[Any, Any]]


class Manifest(Settings):
    """What the rows of a store are. It holds no dates, so that equal stores have equal bytes."""

    format: int = FORMAT
    dim: int = Field(ge=1)
    count: int = Field(ge=1)
    dtype: Literal["float16", "float32"] = "float16"
    encoder_id: str
    data_id: str
    data_name: str = ""
    done: int = Field(0, ge=0)
    complete: bool = False
    sha256: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _as_first_written(cls, values: Any) -> Any:
        """Version 0.1.0 wrote two more fields, which were always empty."""
        empty = {"captions_id": "", "space": None}.items()
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if (key, value) not in empty}

    @property
    def row_bytes(self) -> int:
        return self.dim * np.dtype(self.dtype).itemsize


# What must agree before rows may be added or used, and how a message calls it.
_IDENTITY = {
    "encoder_id": "encoder",
    "data_id": "data",
    "count": "number of rows",
    "dim": "embedding width",
    "dtype": "dtype",
}


class EmbeddingStore(Dataset[tuple[Tensor, Tensor]]):
    """A finished store, opened for reading. Row i holds picture i and its caption.

    `encoder_id`, `data_id`: what the caller expects the rows to be; None takes any. The files' headers and
    lengths are checked at opening, their sha256 only by `verify`.
    Raises DataError naming what differs: no store, unfinished, truncated, changed, another encoder, other
    data.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        encoder_id: str | None = None,
        data_id: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        _check_complete(self.folder, self.manifest)
        expected = {"encoder_id": encoder_id, "data_id": data_id}
        _check_same(
            self.folder, self.manifest, {key: value for key, value in expected.items() if value is not None}
        )
        self.z_img, self.z_txt = (_open_array(self.folder, name, self.manifest) for name in ARRAYS)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def dim(self) -> int:
        return self.manifest.dim

    def __getitem__(self, index: int) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Row `index` as (z_img, z_txt) in float32. Raises IndexError past the end."""
        z_img, z_txt = self.batch([operator.index(index)])
        return z_img[0], z_txt[0]

    def batch(self, indices: Sequence[int] | slice) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Rows by index as (z_img, z_txt) in float32, whatever the files hold."""
        return _rows(self.z_img, indices), _rows(self.z_txt, indices)

    def verify(self) -> None:
        """Reads both files whole and compares their sha256. Raises DataError naming the changed file."""
        for name in ARRAYS:
            if _sha256(self.folder / f"{name}.npy") != self.manifest.sha256[name]:
                raise DataError(
                    f"{self.folder / name}.npy has changed since it was built, and may have been damaged on the disk: "
                    f"delete {self.folder}, and the same command builds it anew"
                )

    def __reduce__(self) -> tuple[type["EmbeddingStore"], tuple[Path]]:
        # A pickled memory map becomes a copy of the whole file; a worker process opens its own instead.
        return type(self), (self.folder,)


class EmbeddingPairs(Dataset[dict[str, Tensor]]):
    """The prior's training data: batches {"z_txt": (B, D), "z_img": (B, D)}, float32.

    tokens: a row for each pair, for a prior that reads captions; batches then also hold "tokens" (B, L).
    """

    def __init__(self, store: EmbeddingStore, tokens: np.ndarray | None = None) -> None:
        self.store = store
        self.tokens = _checked_tokens(tokens, store)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([operator.index(index)]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        z_img, z_txt = self.store.batch(indices)
        return {"z_txt": z_txt, "z_img": z_img, **_token_rows(self.tokens, indices)}


class EmbeddedImages(Dataset[dict[str, Tensor]]):
    """The decoder's and upsampler's data: batches {"z_img": (B, D), "image": (B, 3, S, S) in [-1, 1]},
    float32.

    tokens: as for `EmbeddingPairs`. of: whose embeddings stand under "z_img", the pictures' or, for a
    decoder that does without a prior, their captions'. `source` renders the same pictures as the store was
    built from, at whatever size is trained. Raises DataError if its fingerprint or length is not the
    store's: row i is picture i, or nothing.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        source: AbsDataset,
        tokens: np.ndarray | None = None,
        *,
        of: Literal["image", "text"] = "image",
    ) -> None:
        found = {"data_id": data_fingerprint(source), "count": len(source)}
        _check_same(store.folder, store.manifest, found)
        self.store = store
        self.source = source
        self.tokens = _checked_tokens(tokens, store)
        self.z = store.z_img if of == "image" else store.z_txt

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([operator.index(index)]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        pictures = to_image_tensor(np.stack([self.source[i].image for i in indices]))
        return {"z_img": _rows(self.z, indices), "image": pictures, **_token_rows(self.tokens, indices)}


def _checked_tokens(tokens: np.ndarray | None, store: EmbeddingStore) -> np.ndarray | None:
    if tokens is not None and len(tokens) != len(store):
        raise DataError(f"got {len(tokens)} token rows for {len(store)} embeddings: give one a picture")
    return tokens


def _token_rows(tokens: np.ndarray | None, indices: Sequence[int]) -> dict[str, Tensor]:
    return {} if tokens is None else {"tokens": torch.from_numpy(tokens[np.asarray(indices)].astype(np.int64))}


def build_store(
    folder: str | os.PathLike[str],
    dataset_len: int,
    encode: Encode,
    *,
    dim: int,
    encoder_id: str,
    data_id: str,
    chunk: int = 256,
    dtype: Literal["float16", "float32"] = "float16",
    data_name: str = "",
    on_begin: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EmbeddingStore:
    """Opens the finished store in `folder`, or computes what is missing of it and then opens it.

    `encode(rows)` is called once for each chunk of rows that isn't on the disk yet, in order, and never for
    a finished store. `on_begin(done, count)` comes before the first of them, `on_progress(done, count)`
    after each; a finished store calls neither. The finished files don't depend on `chunk`. `encoder_id` and
    `data_id` are fingerprints of the weights and of the pictures with their captions (`data_fingerprint`).
    Raises DataError if the folder holds a store of something else or a damaged one, or if the encoder
    returns other shapes or numbers that are not finite; OSError on a full disk, after which the finished
    chunks are kept.
    """
    if chunk < 1 or dataset_len < 1:
        raise UsageError(
            f"expected at least one row and chunks of at least one, got {dataset_len} rows, chunk {chunk}"
        )
    wanted = Manifest(
        dim=dim, count=dataset_len, dtype=dtype, encoder_id=encoder_id, data_id=data_id, data_name=data_name
    )
    manifest = _begin(Path(folder), wanted)
    if on_begin is not None and manifest.done < manifest.count:
        on_begin(manifest.done, manifest.count)
    for rows in _missing(manifest, chunk):
        manifest = _add(Path(folder), manifest, rows, encode(rows))
        if on_progress is not None:
            on_progress(manifest.done, manifest.count)
    if not manifest.complete:
        _finish(Path(folder), manifest)
    return EmbeddingStore(folder, encoder_id=encoder_id, data_id=data_id)


def store_folder(parent: str | os.PathLike[str], encoder_id: str, data_id: str) -> Path:
    """A folder below `parent` for this encoder and this data alone, so that stores never collide."""
    key = hashlib.sha256(f"{encoder_id}\n{data_id}".encode()).hexdigest()
    return Path(parent) / f"embeddings-{key[:16]}"


# Building


def _begin(folder: Path, wanted: Manifest) -> Manifest:
    """The manifest of the store begun earlier, or that of a new one with its two files laid out."""
    if (folder / MANIFEST).exists():
        manifest = _read_manifest(folder)
        _check_same(folder, manifest, {key: getattr(wanted, key) for key in _IDENTITY})
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        (folder / f"{name}.npy").write_bytes(_header(wanted))
    _write_manifest(folder, wanted)
    return wanted


def _missing(manifest: Manifest, chunk: int) -> Iterator[range]:
    starts = range(manifest.done, manifest.count, chunk)
    return (range(start, min(start + chunk, manifest.count)) for start in starts)


def _add(folder: Path, manifest: Manifest, rows: range, embeddings: tuple[Any, Any]) -> Manifest:
    """Writes one chunk to the disk and only then counts it."""
    for name, values in zip(ARRAYS, embeddings, strict=True):
        _append(folder / f"{name}.npy", manifest, _checked(name, values, rows, manifest))
    manifest = manifest.model_copy(update={"done": rows.stop})
    _write_manifest(folder, manifest)
    return manifest


def _append(path: Path, manifest: Manifest, values: np.ndarray) -> None:
    # Plain writes: a memory map that meets a full disk kills the process instead of raising an error.
    end = _size_at(manifest, manifest.done)
    if not path.is_file() or path.stat().st_size < end:
        raise _truncated(path)
    with path.open("r+b") as file:
        file.truncate(end)  # what an interrupted run wrote but never counted
        file.seek(end)
        file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _checked(name: str, values: Any, rows: range, manifest: Manifest) -> np.ndarray:
    array = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (len(rows), manifest.dim):
        raise DataError(
            f"the encoder returned {name} of shape {array.shape}, expected {(len(rows), manifest.dim)}"
        )
    with np.errstate(over="ignore"):
        stored = array.astype(np.dtype(manifest.dtype).newbyteorder("<"))
    wrong = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if len(wrong):
        row = rows[int(wrong[0])]
        raise DataError(
            f"{name} of picture {row} is not finite in {manifest.dtype}: check the encoder, or use float32"
        )
    return stored


def _finish(folder: Path, manifest: Manifest) -> None:
    for name in ARRAYS:
        _open_array(folder, name, manifest)
    sha256 = {name: _sha256(folder / f"{name}.npy") for name in ARRAYS}
    _write_manifest(folder, manifest.model_copy(update={"complete": True, "sha256": sha256}))


# Files


def _header(manifest: Manifest) -> bytes:
    """The header of a finished NumPy file, written before its first row."""
    file = io.BytesIO()
    descr = np.dtype(manifest.dtype).newbyteorder("<").str
    shape = (manifest.count, manifest.dim)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _size_at(manifest: Manifest, rows: int) -> int:
    return len(_header(manifest)) + rows * manifest.row_bytes


def _open_array(folder: Path, name: str, manifest: Manifest) -> np.ndarray:
    path = folder / f"{name}.npy"
    if not path.is_file() or path.stat().st_size != _size_at(manifest, manifest.count):
        raise _truncated(path)
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} can't be opened ({error}): delete the folder and build it again") from None
    if array.shape != (manifest.count, manifest.dim) or array.dtype != np.dtype(manifest.dtype):
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}, which its manifest contradicts: build it again"
        )
    return array


def _truncated(path: Path) -> DataError:
    return DataError(
        f"{path} is missing or truncated: delete the folder {path.parent} and build the embeddings again"
    )


def _rows(array: np.ndarray, indices: Sequence[int] | slice) -> Float[Tensor, "b d"]:
    picked = array[indices if isinstance(indices, slice) else np.asarray(indices, dtype=np.int64)]
    return torch.from_numpy(picked.astype(np.float32))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Manifest


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{folder} holds no embeddings: can't read {MANIFEST} ({error.strerror})") from None
    except ValidationError as error:
        raise DataError(f"{path} is damaged or of a newer version: {describe(error, Manifest)}") from None
    if manifest.format != FORMAT:
        raise DataError(
            f"{path} has format {manifest.format}, this version reads {FORMAT}: build the embeddings again"
        )
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    atomic_write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def _check_complete(folder: Path, manifest: Manifest) -> None:
    if not manifest.complete or set(manifest.sha256) != set(ARRAYS):
        state = f"{manifest.done} of {manifest.count} rows"
        raise DataError(
            f"the embeddings in {folder} are unfinished ({state}): build again, it goes on from there"
        )


def _check_same(folder: Path, manifest: Manifest, expected: Mapping[str, Any]) -> None:
    differing = {key: value for key, value in expected.items() if getattr(manifest, key) != value}
    if differing:
        parts = (
            f"{_IDENTITY[key]} {getattr(manifest, key)!r}, not {value!r}" for key, value in differing.items()
        )
        raise DataError(
            f"the embeddings in {folder} are of {'; '.join(parts)}: use another folder or delete this one"
        )
