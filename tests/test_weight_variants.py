"""Folders that hold weights in half precision alone, as they are fetched with a variant."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dalle_2
from dalle_2 import hub
from dalle_2.cached import WEIGHT_FILES, cached, weights_in
from dalle_2.errors import CheckpointError

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPTS, SEEDS = ["a red fox", "green"], [3, 8]


def files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*.safetensors"))


def halved(path: Path) -> dict[str, Tensor]:
    return {name: value.half() if value.is_floating_point() else value for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Karlo in full precision whose numbers half precision can hold."""
    folder = tmp_path_factory.mktemp("whole") / "karlo"
    karlo_rig.build(folder)
    for path in files(folder):
        full = {name: value.to(load_file(path)[name].dtype) for name, value in halved(path).items()}
        save_file(full, path, metadata={"format": "pt"})
    return folder


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """The same, as a variant alone."""
    folder = Path(shutil.copytree(whole, tmp_path / "karlo"))
    for path in files(folder):
        save_file(halved(path), path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    return folder


def drawn(folder: Path) -> Tensor:
    return dalle_2.load(folder, device="cpu", dtype="float32").generate(PROMPTS, 2, seeds=SEEDS)


@pytest.fixture(scope="module")
def wanted(whole: Path) -> Tensor:
    return drawn(whole)


def test_a_folder_of_a_variant_alone_draws_what_the_full_one_draws(half: Path, wanted: Tensor) -> None:
    assert not any((half / "prior" / name).exists() for name in WEIGHT_FILES)
    torch.testing.assert_close(drawn(half), wanted, rtol=0, atol=1e-4)


def test_pickles_of_a_variant_are_read_too(half: Path, wanted: Tensor) -> None:
    for path in files(half):
        name = path.name.replace("model.fp16.safetensors", "model.fp16.bin")
        name = name if name.startswith("diffusion") else f"pytorch_{name}"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    torch.testing.assert_close(drawn(half), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "index",
    ["{0}.safetensors.index.fp16.json", "{0}.safetensors.fp16.index.json", "{0}.fp16.safetensors.index.json"],
)
def test_a_variant_may_lie_in_several_files(half: Path, wanted: Tensor, index: str) -> None:
    path = half / "decoder/diffusion_pytorch_model.fp16.safetensors"
    sharded(path, path.with_name(index.format("diffusion_pytorch_model")), "fp16-0000{0}-of-00002")
    torch.testing.assert_close(drawn(half), wanted, rtol=0, atol=1e-4)


def sharded(path: Path, index: Path, form: str) -> None:
    """Two files in place of one, and the table that says what lies where."""
    tensors = load_file(path)
    names = [f"diffusion_pytorch_model.{form.format(k)}.safetensors" for k in (1, 2)]
    table = {name: names[at % 2] for at, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name in tensors if table[name] == file}, path.with_name(file))
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    path.unlink()


def test_full_precision_is_preferred_where_it_is_whole(tmp_path: Path) -> None:
    def chosen(*names: str, table: dict[str, Any] | None = None) -> str | None:
        folder = Path(tmp_path / "part")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in names:
            (folder / name).write_text(json.dumps({"weight_map": table}) if name.endswith("json") else "")
        found = weights_in(folder)
        return found.name if found else None

    half, full = "model.fp16.safetensors", "model.safetensors"
    assert chosen(half, full) == full
    assert chosen(half, "pytorch_model.bin") == "pytorch_model.bin"
    assert chosen("model.bf16.safetensors", "pytorch_model.fp16.bin") == "pytorch_model.fp16.bin"
    assert chosen("model.ema.safetensors") is None
    # The index of the full weights came along with the small files, the weights did not.
    index = f"{full}.index.json"
    assert chosen(index, half, table={"a": "model-00001-of-00002.safetensors"}) == half
    assert chosen(index, table={"a": "model-00001-of-00002.safetensors"}) == index


def test_no_weights_at_all_are_refused(half: Path) -> None:
    for path in (half / "prior").glob("*.safetensors"):
        path.rename(path.with_suffix(".other"))
    pipeline = dalle_2.load(half, device="cpu")
    with pytest.raises(CheckpointError, match=r"prior holds no weights: expected one of diffusion_pytorch_model\.safe"):
        pipeline.generate(PROMPTS, 1, seeds=SEEDS)


def test_of_the_hub_one_form_is_fetched_the_full_one_if_there_is_one() -> None:
    both = ["a/model.safetensors", "a/model.fp16.safetensors", "a/config.json", "a/model.safetensors.index.fp16.json"]
    assert hub.needed(both) == ["a/config.json", "a/model.safetensors"]
    half = ["a/model.fp16.safetensors", "a/pytorch_model.fp16.bin", "a/config.json", "b/model.safetensors"]
    assert hub.needed(half) == ["a/config.json", "a/model.fp16.safetensors", "b/model.safetensors"]
    shards = ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]
    assert hub.needed([*shards, "model.safetensors.index.fp16.json"]) == [*shards, "model.safetensors.index.fp16.json"]
    assert hub.needed([*shards, "model.safetensors"]) == ["model.safetensors"]
    assert hub.needed(["model.fp16.safetensors", "model.bf16.safetensors"]) == ["model.fp16.safetensors"]
    assert "model.fp16.safetensors" in hub.needed(["model.fp16.safetensors", "training_args.bin"])


def test_a_variant_in_the_cache_of_the_hub_is_whole(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "cache/models--someone--karlo"
    shutil.copytree(half, home / "snapshots/abc")
    (home / "refs").mkdir()
    (home / "refs/main").write_text("abc")
    assert cached("someone/karlo") == home / "snapshots/abc"
