"""Data sets by name, and batches whose order follows from the seed and the images seen."""

import hashlib
import inspect
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from dalle_2.data.abs_dataset import AbsDataset, Example
from dalle_2.data.image_folder import ImageFolder
from dalle_2.data.shapes import Shapes
from dalle_2.data.skipped import Skipping, SkipReport
from dalle_2.errors import DataError, UsageError
from dalle_2.paths import at_home

DATASETS: dict[str, type[AbsDataset]] = {"shapes": Shapes, "folder": ImageFolder}

_SAMPLES = 16  # that a fingerprint looks at

Batch = dict[str, Any]
Collate = Callable[[Sequence[Example]], Batch]


def load_dataset(
    name_or_folder: str | os.PathLike[str], size: int = 64, *, options: Mapping[str, Any] | None = None
) -> AbsDataset:
    """The data set of that name ("shapes"), or the pictures of a folder (a path, "folder:PATH", or
    "s3://...").

    `options` go to the data set's constructor by name, for example {"length": 1000} or {"resize": "pad"}.
    Raises DataError if it is neither a name nor a folder, UsageError for an unknown option.
    """
    text = os.fspath(name_or_folder)
    options = dict(options or {})
    if text in DATASETS and text != "folder":
        return _build(DATASETS[text], {**options, "size": size})
    if text.startswith("folder:") or "://" in text or at_home(text).exists():
        return _build(ImageFolder, {**options, "root": text.removeprefix("folder:"), "size": size})
    close = get_close_matches(text, DATASETS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"name a folder of pictures, or {', '.join(DATASETS)}"
    raise DataError(f"{text!r} is neither a data set nor a folder: {hint}")


def _build(cls: type[AbsDataset], options: Mapping[str, Any]) -> AbsDataset:
    known = inspect.signature(cls).parameters
    for key in options:
        if key not in known:
            raise UsageError(f"{cls.__name__} has no option {key!r}: known are {', '.join(known)}")
    return cls(**options)


# What a data set says of itself


def skip_report(dataset: object) -> SkipReport | None:
    """What a data set left out so far; None for one that never does."""
    return dataset.report() if isinstance(dataset, Skipping) else None


@runtime_checkable
class Fingerprinted(Protocol):
    """A data set that knows its own fingerprint."""

    def fingerprint(self) -> str: ...


@runtime_checkable
class Recognisable(Protocol):
    """A data set whose pictures are files: the same digest, the same picture."""

    def digest(self, index: int) -> str: ...


@runtime_checkable
class Redrawn(Protocol):
    """A data set that draws its pictures at any size."""

    def image(self, index: int, size: int) -> np.ndarray: ...


@runtime_checkable
class Resizable(Protocol):
    """A data set that gives the same pictures at another size without reading anew what they are."""

    def at_size(self, size: int) -> AbsDataset: ...


@runtime_checkable
class Watched(Protocol):
    """A data set that can say what has become of its pictures since it was made, in words; None if they are as they
    were."""

    def changed(self) -> str | None: ...


def data_fingerprint(dataset: AbsDataset) -> str:
    """Two data sets with one fingerprint hold the same pictures and captions by number; their `size` may
    differ.

    A data set without a `fingerprint` of its own is known by its name, length, 16 of its captions, and,
    where it can draw its pictures at any size, four of them.
    """
    if isinstance(dataset, Fingerprinted):
        return dataset.fingerprint()
    indices = sorted({k * (len(dataset) - 1) // (_SAMPLES - 1) for k in range(_SAMPLES)})
    captions = "\n".join(dataset[index].caption for index in indices)
    digest = hashlib.sha256(f"{dataset.name}\n{len(dataset)}\n{captions}".encode())
    if isinstance(dataset, Redrawn):
        for index in indices[:: _SAMPLES // 4]:
            digest.update(dataset.image(index, 16).tobytes())
    return digest.hexdigest()


# Order


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 .. length - 1 that follows from (seed, epoch) alone."""
    return np.argsort(_stream(seed, epoch).random_raw(length), kind="stable")


def first_of_order(length: int, seed: int, count: int) -> np.ndarray:
    """`epoch_order(length, seed, 0)[:count]` without sorting the whole, which an endless set is too long for."""
    stream, chunk = _stream(seed, 0), 2**20
    raw, indices = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    for start in range(0, length, chunk):
        fresh = stream.random_raw(min(chunk, length - start))
        near = np.flatnonzero(fresh < raw[-1]) if len(raw) == count else np.arange(len(fresh))
        raw, indices = np.concatenate([raw, fresh[near]]), np.concatenate([indices, near + start])
        kept = np.argsort(raw, kind="stable")[:count]
        raw, indices = raw[kept], indices[kept]
    return indices


def _stream(seed: int, epoch: int) -> np.random.Philox:
    # NumPy promises the raw stream of a bit generator for ever, that of `permutation` it doesn't.
    return np.random.Philox(key=np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64))


def item_order(length: int, seed: int, start_image: int = 0, *, shuffle: bool = True) -> Iterator[int]:
    """Endless indices from the image number `start_image` on, epoch after epoch."""
    epoch, offset = divmod(start_image, length)
    while True:
        order: Sequence[int] | np.ndarray = epoch_order(length, seed, epoch) if shuffle else range(length)
        yield from map(int, order[offset:])
        epoch, offset = epoch + 1, 0


# Batches


def to_image_tensor(
    images: UInt8[np.ndarray, "b h w 3"] | UInt8[Tensor, "b h w 3"],
) -> Float[Tensor, "b 3 h w"]:
    """uint8 pictures, channels last, as floats in [-1, 1]."""
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(images)
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def collate(examples: Sequence[Example]) -> Batch:
    """{"image": (B, 3, S, S) in [-1, 1], "caption": list of B texts}."""
    images = np.stack([example.image for example in examples])
    return {"image": to_image_tensor(images), "caption": [example.caption for example in examples]}


@runtime_checkable
class BatchDataset(Protocol):
    """A data set that makes its own batches from indices."""

    def batch(self, indices: Sequence[int]) -> Batch: ...


@dataclass(frozen=True, eq=False)
class Batches:
    """Endless batches from the image number `start_image` on.

    Which examples come follows from the seed and the images seen alone, so that a run resumed with
    `at(images)` sees what the uninterrupted one would have seen. Without `shuffle` neighbours stay together,
    as hard negatives must. A batch may reach over the end of an epoch; every batch has `batch_size` examples.

    collate: examples -> batch; a data set with a `batch` method needs none. prefetch: batches that a background
    thread keeps ready; 0 for none.
    """

    dataset: Dataset[Any]
    batch_size: int
    collate: Collate | None = None
    seed: int = 0
    shuffle: bool = True
    start_image: int = 0
    prefetch: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or min(self.start_image, self.prefetch) < 0:
            raise UsageError(
                "batch_size must be at least 1, start_image and prefetch at least 0; "
                f"got {self.batch_size}, {self.start_image} and {self.prefetch}"
            )
        if self.length < 1:
            raise DataError("the data set is empty: expected at least one example")

    @property
    def length(self) -> int:
        """Examples in an epoch."""
        return len(cast(Sized, self.dataset))

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.length // self.batch_size)

    def at(self, images: int) -> "Batches":
        """The same batches from the image number `images` on."""
        return replace(self, start_image=images)

    def indices(self) -> Iterator[list[int]]:
        """The examples of each batch, by index."""
        order = item_order(self.length, self.seed, self.start_image, shuffle=self.shuffle)
        while True:
            yield list(islice(order, self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        batches = map(_reader(self.dataset, self.collate), self.indices())
        return Prefetch(batches, self.prefetch) if self.prefetch else batches


def _reader(dataset: Any, collate_examples: Collate | None) -> Callable[[Sequence[int]], Batch]:
    if collate_examples is None and isinstance(dataset, BatchDataset):
        return dataset.batch
    join = collate_examples or collate
    return lambda indices: join([dataset[index] for index in indices])


class Prefetch(Iterator[Any]):
    """Reads `source` in one background thread that keeps up to `depth` items ready.

    An error in the source is raised where its item would have come. `close`, the end of a `with` block, or
    the loss of the last reference ends the thread and closes the source.
    """

    def __init__(self, source: Iterable[Any], depth: int = 3) -> None:
        self._ready: queue.Queue[_Item] = queue.Queue(maxsize=max(depth, 1))
        stop = threading.Event()
        # The thread must not know `self`, or an abandoned iterator would never be collected.
        thread = threading.Thread(
            target=_fill, args=(source, self._ready, stop), name="prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, _end, thread, stop)
        thread.start()

    def __next__(self) -> Any:
        if not self._finalizer.alive:
            raise StopIteration
        item = self._ready.get()
        if item.last:
            self.close()
            raise item.error or StopIteration
        return item.value

    def close(self) -> None:
        """Ends the thread; what it had ready is dropped. May be called twice."""
        self._finalizer()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Item(NamedTuple):
    value: Any = None
    last: bool = False
    error: BaseException | None = None


def _fill(source: Iterable[Any], ready: "queue.Queue[_Item]", stop: threading.Event) -> None:
    end = _Item(last=True)
    try:
        items = iter(source)
        while not stop.is_set() and (item := next(items, end)) is not end:
            _put(_Item(item), ready, stop)
        getattr(items, "close", lambda: None)()
    except BaseException as error:  # whatever it is, it belongs to the consumer
        end = _Item(last=True, error=error)
    _put(end, ready, stop)


def _put(item: _Item, ready: "queue.Queue[_Item]", stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return ready.put(item, timeout=0.05)
        except queue.Full:
            continue


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join()
