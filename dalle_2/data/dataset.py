"""Data sets by name, parts of them, and batches whose order follows from the seed and the images seen."""

import hashlib
import inspect
import operator
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dalle_2.data.abs_dataset import AbsDataset, Example
from dalle_2.data.image_folder import ImageFolder, Skipped, Skipping, SkipReport, read_or_next
from dalle_2.data.shapes import Shapes
from dalle_2.errors import Dalle2Error, DataError, UsageError

DATASETS: dict[str, type[AbsDataset]] = {"shapes": Shapes, "folder": ImageFolder}

_HOLDOUT_EPOCH = 2**64 - 1  # no training run gets there, so a split never equals an epoch's order
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
    if text.startswith("folder:") or "://" in text or Path(text).expanduser().exists():
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


# Parts


class Part(AbsDataset):
    """The examples of `source` at `indices`; a broken picture is replaced from within the part."""

    def __init__(self, source: AbsDataset, indices: Sequence[int] | np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.name, self.size = source.name, source.size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a part of {len(self)}")
        example = read_or_next(self.read, range(len(self)), index)
        if example is None:
            raise DataError(f"none of the {len(self)} pictures in this part of {self.name!r} can be read")
        return example

    def read(self, index: int) -> Example | None:
        """Example `index` itself, or None if its picture can't be read."""
        inner = int(self.indices[index])
        return self.source.read(inner) if isinstance(self.source, Skipping) else self.source[inner]

    def report(self) -> SkipReport:
        """What the whole source left out so far."""
        return skip_report(self.source) or SkipReport(len(self.source), ())

    def absorb(self, skipped: Iterable[Skipped]) -> None:
        if isinstance(self.source, Skipping):
            self.source.absorb(skipped)

    def fingerprint(self) -> str:
        return hashlib.sha256(data_fingerprint(self.source).encode() + self.indices.tobytes()).hexdigest()


def split_holdout(dataset: AbsDataset, fraction: float, seed: int = 0) -> tuple[Part, Part]:
    """(the rest, the held-out part); which example goes where follows from length, fraction and seed.

    Either part gets at least one example unless the fraction is 0. Raises UsageError for a fraction outside
    [0, 1) or too few examples.
    """
    if not 0 <= fraction < 1 or (fraction > 0 and len(dataset) < 2):
        raise UsageError(
            f"expected a fraction in [0, 1) of at least two examples, got {fraction} of {len(dataset)}"
        )
    held = 0 if fraction == 0 else min(max(round(fraction * len(dataset)), 1), len(dataset) - 1)
    order = epoch_order(len(dataset), seed, _HOLDOUT_EPOCH)
    return Part(dataset, np.sort(order[held:])), Part(dataset, np.sort(order[:held]))


def skip_report(dataset: object) -> SkipReport | None:
    """What a data set, or the one it is built on, left out so far; None for one that never does."""
    skipping = _skipping(dataset)
    return skipping.report() if skipping is not None else None


def _skipping(dataset: object) -> Skipping | None:
    """The data set itself, or the one it is built on, if it may leave pictures out."""
    while dataset is not None and not isinstance(dataset, Skipping):
        dataset = getattr(dataset, "source", None)
    return dataset


@runtime_checkable
class Fingerprinted(Protocol):
    """A data set that knows its own fingerprint."""

    def fingerprint(self) -> str: ...


@runtime_checkable
class Redrawn(Protocol):
    """A data set that draws its pictures at any size."""

    def image(self, index: int, size: int) -> np.ndarray: ...


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
    return torch.as_tensor(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


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

    collate: examples -> batch; a data set with a `batch` method needs none. workers: processes that load; 0
    loads where the batches are consumed. prefetch: batches that a background thread keeps ready; 0 for none.
    """

    dataset: Dataset[Any]
    batch_size: int
    collate: Collate | None = None
    seed: int = 0
    shuffle: bool = True
    start_image: int = 0
    workers: int = 0
    prefetch: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or min(self.start_image, self.workers, self.prefetch) < 0:
            raise UsageError(
                "batch_size must be at least 1, start_image, workers and prefetch at least 0; "
                f"got {self.batch_size}, {self.start_image}, {self.workers} and {self.prefetch}"
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
        batches = self._from_workers() if self.workers else self._here()
        return Prefetch(batches, self.prefetch) if self.prefetch else batches

    def _here(self) -> Iterator[Batch]:
        return map(_reader(self.dataset, self.collate), self.indices())

    def _from_workers(self) -> Iterator[Batch]:
        loader: DataLoader[_Loaded] = DataLoader(
            _WorkerSide(self.dataset, self.collate),
            batch_size=None,
            sampler=self.indices(),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        skipping = _skipping(self.dataset)
        for loaded in loader:
            if skipping is not None:
                skipping.absorb(loaded.skipped)
            if loaded.error is not None:
                raise loaded.error
            yield loaded.batch


def _reader(dataset: Any, collate_examples: Collate | None) -> Callable[[Sequence[int]], Batch]:
    if collate_examples is None and isinstance(dataset, BatchDataset):
        return dataset.batch
    join = collate_examples or collate
    return lambda indices: join([dataset[index] for index in indices])


class _Loaded(NamedTuple):
    """What a worker sends: a batch or the error it met, and the pictures it newly skipped."""

    batch: Batch
    error: Dalle2Error | None
    skipped: tuple[Skipped, ...]


class _WorkerSide(Dataset[_Loaded]):
    def __init__(self, dataset: Dataset[Any], collate_examples: Collate | None) -> None:
        self.dataset, self.collate = dataset, collate_examples
        self._told = 0

    def __getitem__(self, indices: list[int]) -> _Loaded:
        batch, error = {}, None
        try:
            batch = _reader(self.dataset, self.collate)(indices)
        except Dalle2Error as met:
            error = met  # as a value: the loader would bury its sentence in a traceback
        report = skip_report(self.dataset)
        skipped = report.skipped[self._told :] if report is not None else ()
        self._told += len(skipped)
        return _Loaded(batch, error, skipped)


def _as_it_is(loaded: Any) -> Any:
    return loaded


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
