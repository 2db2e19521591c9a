"""The order of examples, resuming in the middle of it, and loading in the background."""

import gc
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_2.data.abs_dataset import AbsDataset, Example
from dalle_2.data.dataset import (
    DATASETS,
    Batches,
    Prefetch,
    collate,
    data_fingerprint,
    epoch_order,
    first_of_order,
    item_order,
    load_dataset,
    skip_report,
    to_image_tensor,
)
from dalle_2.data.image_folder import ImageFolder
from dalle_2.data.shapes import Shapes
from dalle_2.errors import DataError, UsageError


class Numbers(AbsDataset):
    """Example i is a picture of the grey level i, captioned with its number."""

    name = "numbers"

    def __init__(self, length: int = 10, size: int = 2, fails_at: int | None = None) -> None:
        self.length, self.size, self.fails_at = length, size, fails_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        if index == self.fails_at:
            raise DataError(f"example {index} is broken")
        return Example(np.full((self.size, self.size, 3), index, np.uint8), str(index))


def numbers(batch) -> list[int]:
    return [int(caption) for caption in batch["caption"]]


def folder(path, pictures: int = 8, broken: tuple[int, ...] = ()):
    for i in range(pictures):
        Image.new("RGB", (4, 4), (i, i, i)).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(str(i))
    for i in broken:
        (path / f"{i}.png").write_bytes(b"")
    return path


# Order


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**70), st.integers(0, 50))
def test_an_epoch_visits_every_example_once(length, seed, epoch):
    order = epoch_order(length, seed, epoch)
    assert sorted(order.tolist()) == list(range(length))
    assert order.tolist() == epoch_order(length, seed, epoch).tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(4)}
    assert len(orders) == 12


def test_the_order_is_the_same_for_ever():
    """By the definition of Philox4x64-10: a run may be resumed with another NumPy, on another machine."""
    assert epoch_order(8, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


@pytest.mark.parametrize(("length", "count"), [(7, 3), (7, 7), (7, 20), (1, 1), (2**21 + 3, 50)])
def test_the_first_of_an_order_need_not_sort_the_whole(length: int, count: int) -> None:
    assert first_of_order(length, 5, count).tolist() == epoch_order(length, 5, 0)[:count].tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 7), st.booleans())
def test_resumed_order_equals_the_uninterrupted_one(length, start, batch_size, shuffle):
    batches = Batches(Numbers(length), batch_size, seed=5, shuffle=shuffle)
    whole = list(islice(item_order(length, 5, shuffle=shuffle), start + 3 * batch_size))
    resumed = islice(batches.at(start).indices(), 3)
    assert [i for batch in resumed for i in batch] == whole[start:]


def test_without_shuffling_neighbours_stay_together():
    blocks = list(islice(Batches(Numbers(6), 4, shuffle=False).indices(), 3))
    assert blocks == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def test_resumed_batches_equal_the_uninterrupted_ones():
    batches = Batches(Numbers(10), 4, seed=3)
    whole = list(islice(batches, 6))
    resumed = list(islice(batches.at(12), 3))
    for a, b in zip(whole[3:], resumed, strict=True):
        assert a["caption"] == b["caption"]
        assert torch.equal(a["image"], b["image"])
    assert batches.batches_per_epoch == 3


def test_batches_refuse_nonsense():
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        Batches(Numbers(), 0)
    with pytest.raises(UsageError, match="start_image"):
        Batches(Numbers(), 2).at(-1)
    with pytest.raises(DataError, match="the data set is empty"):
        Batches(Numbers(0), 2)


# Batches


def test_collate_maps_levels_to_minus_one_and_one():
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    batch = collate([Example(pixels, "a"), Example(pixels[..., ::-1], "b")])
    assert batch["caption"] == ["a", "b"]
    assert batch["image"].shape == (2, 3, 1, 1)
    torch.testing.assert_close(batch["image"].flatten(), torch.tensor([-1, -0.6, 1, 1, -0.6, -1]))
    assert torch.equal(to_image_tensor(torch.from_numpy(pixels[None])), batch["image"][:1])


def test_a_collate_of_ones_own():
    batches = Batches(Numbers(), 3, lambda examples: {"n": len(examples)})
    assert next(iter(batches)) == {"n": 3}


# Prefetching


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetching_gives_the_same_batches_and_ends_cleanly():
    batches = Batches(Numbers(10), 4, seed=2)
    expected = list(islice(batches, 7))
    with iter(Batches(Numbers(10), 4, seed=2, prefetch=3)) as stream:
        found = list(islice(stream, 7))
        assert len(threads()) == 1
    assert [numbers(batch) for batch in found] == [numbers(batch) for batch in expected]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(found, expected, strict=True))
    assert threads() == []
    assert next(stream, None) is None
    stream.close()


def test_prefetching_reads_ahead_no_further_than_its_depth():
    taken = []

    def source():
        for i in range(100):
            taken.append(i)
            yield i

    with Prefetch(source(), depth=2) as stream:
        assert next(stream) == 0
        until = time.monotonic() + 5
        while len(taken) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(taken) == 4  # one consumed, two ready, one waiting for a place
    assert list(Prefetch(range(5))) == [0, 1, 2, 3, 4]


def test_an_error_in_the_background_reaches_the_consumer_in_its_place():
    stream = iter(Batches(Numbers(10, fails_at=5), 2, shuffle=False, prefetch=4))
    assert [numbers(next(stream)), numbers(next(stream))] == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="example 5 is broken"):
        next(stream)
    assert next(stream, None) is None
    assert threads() == []


def test_an_abandoned_stream_ends_its_thread_and_closes_its_source():
    closed = threading.Event()

    def source():
        try:
            yield from range(1000)
        finally:
            closed.set()

    stream = Prefetch(source())
    assert next(stream) == 0
    del stream
    gc.collect()
    assert closed.wait(5)
    assert threads() == []


# Names


def test_pictures_that_were_skipped_are_reported(tmp_path):
    data = ImageFolder(folder(tmp_path, broken=(2, 5)), 4)
    for _ in islice(Batches(data, 4, shuffle=False), 2):
        pass
    assert skip_report(data).names == {"empty file": ("2.png", "5.png")}
    assert skip_report(Numbers()) is None


def test_fingerprints_tell_data_sets_apart_but_not_sizes():
    data = Shapes(16, 100)
    others = [Shapes(16, 101), Shapes(16, 100, seed=1), Shapes(16, 100, siblings=2), Numbers(100)]
    prints = {data_fingerprint(other) for other in [data, *others]}
    assert len(prints) == 5
    assert data_fingerprint(Shapes(32, 100)) == data_fingerprint(data)
    assert data_fingerprint(Numbers(1)) != data_fingerprint(Numbers(2))


def test_data_sets_by_name_and_by_folder(tmp_path, monkeypatch):
    assert set(DATASETS) == {"shapes", "folder"}
    shapes = load_dataset("shapes", 16, options={"length": 7, "seed": 3})
    assert (type(shapes), shapes.size, len(shapes)) == (Shapes, 16, 7)
    folder(tmp_path, 2)
    monkeypatch.chdir(tmp_path.parent)
    for name in (tmp_path, str(tmp_path), f"folder:{tmp_path}", f"file://{tmp_path}", tmp_path.name):
        data = load_dataset(name, 8, options={"resize": "pad"})
        assert (type(data), data.size, len(data), data.resize) == (ImageFolder, 8, 2, "pad")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("shape", {}, DataError, "'shape' is neither a data set nor a folder: did you mean 'shapes'"),
        (
            "/no/such",
            {},
            DataError,
            "'/no/such' is neither a data set nor a folder: name a folder of pictures",
        ),
        ("folder:/no/such", {}, DataError, "the data folder /no/such doesn't exist"),
        ("folder", {}, DataError, "'folder' is neither"),
        ("shapes", {"lenght": 3}, UsageError, "Shapes has no option 'lenght': known are size, length"),
    ],
)
def test_unknown_names_and_options_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        load_dataset(name, 8, options=options)
