"""The captions of a data set as token rows, made once: a network that reads words asks for them at every step."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import data_fingerprint
from dalle_2.paths import atomic_path, atomic_write_text

CHUNK = 4096


def caption_tokens(
    dataset: AbsDataset, tokenize: Callable[[list[str]], Tensor], folder: Path, *, tokenizer_id: str
) -> Int32[np.ndarray, "n l"]:
    """A token row for each example, memory-mapped from a file in `folder` that is written at the first call.

    One that isn't what was written, as the digest beside it says, is made anew.
    """
    key = hashlib.sha256(f"{tokenizer_id}\n{data_fingerprint(dataset)}".encode()).hexdigest()
    path = folder / f"tokens-{key[:16]}.npy"
    if not _is_whole(path):
        folder.mkdir(parents=True, exist_ok=True)
        rows = np.concatenate([_rows(dataset, tokenize, start) for start in _starts(dataset)])
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            # As np.save would, which writes through C and loses the reason where the disk is full.
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
            file.write(rows.data)
        atomic_write_text(_digest_file(path), _digest(path))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _is_whole(path: Path) -> bool:
    try:
        return _digest_file(path).read_text() == _digest(path)
    except (OSError, ValueError):
        return False


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _starts(dataset: AbsDataset) -> range:
    return range(0, len(dataset), CHUNK)


def _rows(dataset: AbsDataset, tokenize: Callable[[list[str]], Tensor], start: int) -> Int32[np.ndarray, "n l"]:
    captions = [dataset.caption(index) for index in range(start, min(start + CHUNK, len(dataset)))]
    return tokenize(captions).numpy().astype(np.int32)
