"""The store of embeddings: what is written stays, what was interrupted goes on, what differs is refused."""

import errno
import json
import pickle

import numpy as np
import pytest
import torch

from dalle_2.data import embeddings
from dalle_2.data.dataset import Batches, data_fingerprint
from dalle_2.data.embeddings import (
    EmbeddedImages,
    EmbeddingPairs,
    EmbeddingStore,
    build_store,
    store_folder,
)
from dalle_2.data.shapes import Shapes
from dalle_2.errors import DataError, UsageError

DIM, COUNT = 6, 23


class Encoder:
    """Embeds picture i as i + 0, i + 1/8, ... and remembers which rows it was asked for; stops where told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.asked: list[range] = []

    def __call__(self, rows: range) -> tuple[torch.Tensor, np.ndarray]:
        if self.stop_at is not None and rows.stop > self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(rows)
        z_img = torch.tensor(rows)[:, None] + torch.arange(DIM) / 8
        return z_img, -z_img.numpy()


def build(folder, encode=None, **changes) -> EmbeddingStore:
    settings = {
        "dim": DIM,
        "encoder_id": "clip-a",
        "data_id": "pets",
        "chunk": 5,
        "dataset_len": COUNT,
    } | changes
    return build_store(folder, encode=encode or Encoder(), **settings)


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_come_back_as_they_were_given(tmp_path, dtype):
    store = build(tmp_path / "s", dtype=dtype, data_name="pets")
    assert (len(store), store.dim, store.manifest.data_name) == (COUNT, DIM, "pets")
    expected = torch.tensor(range(COUNT))[:, None] + torch.arange(DIM) / 8  # exact in float16
    z_img, z_txt = store.batch(slice(None))
    assert z_img.dtype == z_txt.dtype == torch.float32
    assert torch.equal(z_img, expected)
    assert torch.equal(z_txt, -expected)
    z_img, z_txt = store.batch([22, 0, 7, 7])
    assert torch.equal(z_img, expected[[22, 0, 7, 7]])
    assert torch.equal(store[7][1], -expected[7])
    with pytest.raises(IndexError):
        store[COUNT]
    # Any NumPy reads the files; nothing of ours is needed.
    plain = np.load(tmp_path / "s/z_img.npy")
    assert (plain.dtype, plain.shape) == (np.dtype(dtype), (COUNT, DIM))
    assert isinstance(store.z_img, np.memmap)


def test_a_finished_store_is_never_computed_again(tmp_path):
    encode, begun, progress = Encoder(), [], []
    watched = {
        "on_begin": lambda done, count: begun.append((done, count)),
        "on_progress": lambda done, count: progress.append((done, count)),
    }
    build(tmp_path, encode, **watched)
    assert begun == [(0, 23)]
    assert encode.asked == [range(5), range(5, 10), range(10, 15), range(15, 20), range(20, 23)]
    assert progress == [(5, 23), (10, 23), (15, 23), (20, 23), (23, 23)]
    again = Encoder()
    build(tmp_path, again, **watched)
    assert again.asked == []
    assert (len(begun), len(progress)) == (1, 5)


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_the_files_do_not_depend_on_the_chunks(tmp_path, chunk):
    build(tmp_path / "fives")
    build(tmp_path / "others", chunk=chunk)
    assert content(tmp_path / "others") == content(tmp_path / "fives")


def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(tmp_path):
    build(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cut", Encoder(stop_at=12))
    with pytest.raises(DataError, match=r"unfinished \(10 of 23 rows\): build again"):
        EmbeddingStore(tmp_path / "cut")
    # A chunk that was written but not counted, as after a loss of power.
    for name in ("z_img.npy", "z_txt.npy"):
        with (tmp_path / "cut" / name).open("ab") as file:
            file.write(b"\xff" * 31)
    encode, begun = Encoder(), []
    build(tmp_path / "cut", encode, on_begin=lambda done, count: begun.append((done, count)))
    assert begun == [(10, 23)]
    assert encode.asked[0] == range(10, 15)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_build_interrupted_before_its_checksums_only_finishes(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "cut")
    encode = Encoder()
    build(tmp_path / "cut", encode)
    build(tmp_path / "whole")
    assert encode.asked == []
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_full_disk_keeps_the_finished_chunks(tmp_path, monkeypatch):
    real, calls = embeddings.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(embeddings.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path / "s")
    monkeypatch.undo()
    kept = json.loads((tmp_path / "s/manifest.json").read_text())["done"]
    encode = Encoder()
    build(tmp_path / "s", encode)
    assert 0 <= kept < COUNT
    assert encode.asked[0].start == kept
    build(tmp_path / "whole")
    assert content(tmp_path / "s") == content(tmp_path / "whole")


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_id": "clip-b"}, "encoder 'clip-a', not 'clip-b'"),
        ({"data_id": "cars"}, "data 'pets', not 'cars'"),
        ({"encoder_id": "x", "data_id": "y"}, "encoder 'clip-a', not 'x'; data 'pets', not 'y'"),
        ({"dataset_len": 24}, "number of rows 23, not 24"),
        ({"dtype": "float32"}, "dtype 'float16', not 'float32'"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_something_else_is_refused_and_left_alone(tmp_path, changes, message, finished):
    if finished:
        build(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, Encoder(stop_at=12))
    before = content(tmp_path)
    with pytest.raises(DataError, match=message):
        build(tmp_path, **changes)
    assert content(tmp_path) == before


def test_opening_names_what_differs(tmp_path):
    build(tmp_path)
    EmbeddingStore(tmp_path, encoder_id="clip-a", data_id="pets").verify()
    with pytest.raises(DataError, match="encoder 'clip-a', not 'clip-b': use another folder"):
        EmbeddingStore(tmp_path, encoder_id="clip-b")
    with pytest.raises(DataError, match="data 'pets', not 'cars'"):
        EmbeddingStore(tmp_path, data_id="cars")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def relabel(path):
    path.write_bytes(path.read_bytes().replace(b"(23, 6)", b"(6, 23)"))


def rubbish(path):
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"z_txt\.npy is missing or truncated"),
        (lengthen, r"z_txt\.npy is missing or truncated"),
        (lambda path: path.unlink(), r"z_txt\.npy is missing or truncated"),
        (relabel, r"z_txt\.npy holds float16 \(6, 23\), which its manifest contradicts"),
        (rubbish, r"z_txt\.npy can't be opened"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    build(tmp_path)
    damage(tmp_path / "z_txt.npy")
    for open_it in (lambda: EmbeddingStore(tmp_path), lambda: build(tmp_path)):
        with pytest.raises(DataError, match=message):
            open_it()


def test_a_truncated_file_of_an_unfinished_store_is_not_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, Encoder(stop_at=12))
    cut(tmp_path / "z_img.npy")
    with pytest.raises(DataError, match=r"z_img\.npy is missing or truncated: delete the folder"):
        build(tmp_path)


def test_a_flipped_bit_is_found_when_asked_for(tmp_path):
    store = build(tmp_path)
    content = bytearray((tmp_path / "z_img.npy").read_bytes())
    content[-20] ^= 1
    (tmp_path / "z_img.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"z_img\.npy has changed since it was built"):
        store.verify()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "holds no embeddings: can't read manifest.json"),
        ("{", "is damaged or of a newer version"),
        ('{"dim": 3}', "'count' is missing"),
        ("newer", "has format 2, this version reads 1"),
    ],
)
def test_manifests_that_make_no_sense_are_refused(tmp_path, manifest, message):
    build(tmp_path)
    path = tmp_path / "manifest.json"
    newer = path.read_text().replace('"format": 1', '"format": 2')
    path.unlink()
    if manifest is not None:
        path.write_text(newer if manifest == "newer" else manifest)
    with pytest.raises(DataError, match=message):
        EmbeddingStore(tmp_path)


def test_a_manifest_of_the_first_version_is_read(tmp_path):
    """It held two more fields, always empty; filled ones would mean something that nobody knows any more."""
    build(tmp_path)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"captions_id": "", "space": None}))
    again = Encoder()
    assert len(build(tmp_path, again)) == COUNT
    assert again.asked == []
    path.write_text(json.dumps(values | {"space": {"normalised": True}}))
    with pytest.raises(DataError, match="of a newer version: unknown key 'space'"):
        EmbeddingStore(tmp_path)


def nan_in_row_8(rows: range):
    z = np.zeros((len(rows), DIM), np.float32)
    z[[row == 8 for row in rows]] = np.nan
    return z, z


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (nan_in_row_8, "z_img of picture 8 is not finite in float16"),
        (lambda rows: (np.full((len(rows), DIM), 7e4),) * 2, "z_img of picture 0 is not finite in float16"),
        (
            lambda rows: (np.zeros((len(rows), 4)),) * 2,
            r"returned z_img of shape \(5, 4\), expected \(5, 6\)",
        ),
    ],
)
def test_an_encoder_that_misbehaves_is_named(tmp_path, encode, message):
    with pytest.raises(DataError, match=message):
        build(tmp_path, encode)


def test_nothing_to_embed(tmp_path):
    with pytest.raises(UsageError, match="at least one row"):
        build(tmp_path, dataset_len=0)
    with pytest.raises(UsageError, match="chunk 0"):
        build(tmp_path, chunk=0)


# Batches


def test_pairs_in_batches(tmp_path):
    store = build(tmp_path)
    batches = Batches(EmbeddingPairs(store), 4, seed=1)
    batch, rows = next(iter(batches)), next(batches.indices())
    assert set(batch) == {"z_txt", "z_img"}
    assert batch["z_img"][:, 0].tolist() == rows
    assert torch.equal(batch["z_txt"], -batch["z_img"])
    assert torch.equal(EmbeddingPairs(store)[3]["z_txt"], store[3][1])


def test_row_i_is_picture_i_at_any_size(tmp_path):
    source = Shapes(8, COUNT)

    def encode(rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Embeds a picture as its mean colour, which can be read back from any size."""
        colours = np.stack([source[i].image.mean(axis=(0, 1)) for i in rows]) / 255
        return np.tile(colours, 2), np.tile(colours, 2)

    store = build(tmp_path, encode, data_id=data_fingerprint(source))
    pairs = EmbeddedImages(store, Shapes(32, COUNT))
    batches = Batches(pairs, 5, seed=3)
    for batch, rows in zip(batches, batches.indices(), strict=False):
        assert batch["image"].shape == (5, 3, 32, 32)
        colours = (batch["image"].mean(dim=(2, 3)) + 1) / 2
        torch.testing.assert_close(colours, batch["z_img"][:, :3], atol=0.02, rtol=0)
        if COUNT - 1 in rows:
            break
    single = pairs[4]
    assert torch.equal(single["image"], pairs.batch([3, 4])["image"][1])
    assert torch.equal(single["z_img"], store[4][0])
    with pytest.raises(DataError, match="are of data"):
        EmbeddedImages(store, Shapes(32, COUNT, seed=1))
    with pytest.raises(DataError, match=r"number of rows 23, not 24"):
        EmbeddedImages(store, Shapes(32, COUNT + 1))


def test_a_pickled_store_opens_its_files_again(tmp_path):
    store = build(tmp_path)
    copied = pickle.dumps(store)
    assert len(copied) < 1000
    assert torch.equal(pickle.loads(copied).batch([5])[0], store.batch([5])[0])


def test_stores_of_other_encoders_or_data_have_other_folders(tmp_path):
    names = {store_folder(tmp_path, encoder, data) for encoder in ("a", "b") for data in ("c", "d")}
    assert len(names) == 4
    assert store_folder(tmp_path, "a", "c") in names
