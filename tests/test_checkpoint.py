"""Weight files: what goes in comes out, and each kind of damage is one sentence."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.clip import CLIP
from dalle_2.weights import checkpoint as module
from dalle_2.weights.checkpoint import (
    MIGRATIONS,
    Checkpoint,
    load_checkpoint,
    load_tensors,
    read_tensors,
    save_checkpoint,
)

CONFIG = {"width": 4, "levels": [1, 2], "name": "Grün", "nested": {"on": True, "none": None}}
TENSORS = {"weight": torch.arange(12.0).view(3, 4), "steps": torch.tensor([1, 2, 3])}
SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".pth"])


def saved(path: Path, **changes) -> Path:
    values = {"kind": "prior", "config": CONFIG, "tensors": TENSORS, "provenance": {"images": 7}} | changes
    save_checkpoint(path, **values)
    return path


@SUFFIXES
def test_a_checkpoint_comes_back_whole(tmp_path: Path, suffix: str):
    checkpoint = load_checkpoint(saved(tmp_path / f"deep/down/x{suffix}"), "prior")
    assert (checkpoint.kind, checkpoint.config, checkpoint.provenance) == ("prior", CONFIG, {"images": 7})
    assert checkpoint.format_version == 2
    assert all(torch.equal(checkpoint.tensors[name], TENSORS[name]) for name in TENSORS)


@SUFFIXES
def test_equal_checkpoints_are_equal_files(tmp_path: Path, suffix: str):
    first, second = (saved(tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second


def test_dtype_changes_floating_point_only_and_views_are_stored(tmp_path: Path):
    tensors = {"view": torch.arange(12.0).view(3, 4).T, "steps": torch.tensor([1, 2])}
    loaded = load_checkpoint(saved(tmp_path / "x.safetensors", tensors=tensors, dtype=torch.float16)).tensors
    assert loaded["view"].dtype == torch.float16
    assert loaded["steps"].dtype == torch.int64
    assert torch.equal(loaded["view"].float(), tensors["view"])


@SUFFIXES
def test_missing_truncated_and_foreign_files(tmp_path: Path, suffix: str):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(CheckpointError, match="there is no weight file"):
        load_checkpoint(path)
    whole = saved(path).read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            load_checkpoint(path)
    path.write_bytes(b"this is no weight file at all" * 9)
    with pytest.raises(CheckpointError, match=r"damaged"):
        load_checkpoint(path)


@SUFFIXES
def test_another_kind_and_a_newer_format(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / f"x{suffix}")
    with pytest.raises(CheckpointError, match="holds a prior, but a decoder was expected"):
        load_checkpoint(path, "decoder")
    monkeypatch.setattr(module, "FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="format version 2, and this release reads up to 0: upgrade"):
        load_checkpoint(path)


def test_an_older_format_is_migrated_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / "x.safetensors")
    monkeypatch.setattr(module, "FORMAT_VERSION", 4)
    with pytest.raises(CheckpointError, match="can't migrate"):
        load_checkpoint(path)

    def renamed(checkpoint: Checkpoint) -> Checkpoint:
        return Checkpoint(checkpoint.kind + "+", checkpoint.config, checkpoint.tensors, checkpoint.provenance)

    monkeypatch.setattr(module, "MIGRATIONS", {2: renamed, 3: renamed})
    checkpoint = load_checkpoint(path, "prior++")
    assert checkpoint.format_version == 4


def test_a_clip_of_format_1_keeps_the_pool_it_was_trained_with():
    config = {"vision": {"width": 16, "depth": 0, "heads": 2, "image_size": 16, "pool": "grid_mean"}}
    model = CLIP.from_config(config)
    was = {"vision": {**config["vision"], "pool": "grid"}}  # what it was called then
    migrated = MIGRATIONS[1](Checkpoint("clip", was, model.state_dict(), {}, 1))
    again = CLIP.from_config(migrated.config)
    load_tensors(again, migrated.tensors, "memory")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.encode_image(x), model.encode_image(x))
    others = Checkpoint("clip", config, {}, {}, 1)
    assert MIGRATIONS[1](others) is others


def test_files_of_others_are_not_checkpoints(tmp_path: Path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    torch.save(TENSORS, tmp_path / "x.pth")
    torch.save({"dalle_2": {"kind": "prior"}, "tensors": TENSORS}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint of this package"):
        load_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of this package"):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="format_version, config, provenance is missing"):
        load_checkpoint(tmp_path / "y.pth")
    for name in ("x.safetensors", "x.pth"):
        assert set(read_tensors(tmp_path / name)) == set(TENSORS)


class Attack:
    def __reduce__(self):
        return Path.touch, (Path("attacked"),)


def test_a_pickle_with_code_is_refused_and_not_run(workdir: Path):
    torch.save({"tensors": Attack()}, "x.pth")
    Path("y.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    for name in ("x.pth", "y.pth"):
        with pytest.raises(CheckpointError, match="could run code"):
            load_checkpoint(name)
    assert not Path("attacked").exists()


def test_a_suffix_that_names_no_format(tmp_path: Path):
    with pytest.raises(UsageError, match=r"suffix '.ckpt'"):
        saved(tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match=r"suffix ''"):
        load_checkpoint(tmp_path / "x")


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes, as a full disk would."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@SUFFIXES
def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path, suffix: str):
    path = saved(tmp_path / f"x{suffix}")
    before = path.read_bytes()
    with (
        no_file_beyond(50_000),
        pytest.raises(CheckpointError, match=r"could not be written: .* the older file is unchanged"),
    ):
        saved(path, tensors={"weight": torch.zeros(100_000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_loading_is_strict_and_names_the_tensors():
    layer = nn.Linear(4, 3)
    before = layer.weight.clone()
    with pytest.raises(CheckpointError) as error:
        load_tensors(layer, {"weight": torch.zeros(4, 3), "extra": torch.zeros(1)}, "x.safetensors")
    for part in (
        "x.safetensors",
        "Linear",
        "missing (1): bias",
        "extra",
        "weight is (4, 3) instead of (3, 4)",
    ):
        assert part in str(error.value)
    assert torch.equal(layer.weight, before)
    load_tensors(layer, {"weight": torch.ones(3, 4).half(), "bias": torch.ones(3)}, "x.safetensors")
    assert layer.weight.dtype == torch.float32
    assert (layer.weight == 1).all()
