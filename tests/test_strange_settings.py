"""Settings that a stranger wrote: a manifest of any kind, JSON and TOML without an end, ids that lead elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import dalle_2
from dalle_2.cached import cached
from dalle_2.cli import doctor
from dalle_2.cli.main import main
from dalle_2.config import read_toml
from dalle_2.data.caption_tables import rows_of
from dalle_2.data.caption_text import parsed as caption_json
from dalle_2.errors import CheckpointError, ConfigError, Dalle2Error
from dalle_2.images import save_image
from dalle_2.json_file import DEEPEST, MOST_BYTES, parsed, read_object
from dalle_2.metadata import read_metadata
from dalle_2.models.clip_loading import load_clip
from dalle_2.pipelines.folder import load
from dalle_2.pipelines.manifest import Part, read_manifest
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.weights.checkpoint import load_checkpoint, load_tensors

FAR = 100_000
DEEP = "[" * FAR + "]" * FAR
DEEP_OBJECT = '{"a":' * FAR + "1" + "}" * FAR
NARROW = '{"a":' * 900 + "1" + "}" * 900  # which is read, and then too deep for what goes through it


def manifest(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.json").write_text(text)
    return folder


# Manifests

STRANGE = {
    "no json": "{",
    "a list": "[]",
    "a number": "7",
    "deep": DEEP,
    "deep objects": DEEP_OBJECT,
    "deep training": '{"name": "a", "parts": {}, "training": ' + NARROW + "}",
    "a deep size": '{"name": "a", "parts": {"decoder": {"file": "a", "config": {"image_size": ' + NARROW + "}}}}",
    "a long size": '{"name": "a", "parts": {"upsampler-' + "9" * 5000 + '": {"file": "a"}}}',
    "a huge number": '{"name": "a", "parts": {}, "format_version": ' + "9" * 5000 + "}",
    "not finite": '{"name": "a", "parts": {}, "guidance": {"decoder": NaN}}',
    "wrong types": '{"name": 3, "parts": [1]}',
    "null": "null",
    "not utf-8": "\udcff",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_stranger_in_trained_models_hides_none_of_the_others(
    kind: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(workdir / "trained_models" / "a", '{"name": "a", "parts": {}}')
    folder = workdir / "trained_models" / "b"
    folder.mkdir()
    (folder / "pipeline.json").write_bytes(STRANGE[kind].encode("utf-8", "surrogateescape"))
    manifest(workdir / "trained_models" / "c", '{"name": "c", "parts": {}}')
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows[:3]] == ["a", "b", "c"]
    assert {"shapes-tiny", "karlo"} <= {row["name"] for row in rows}
    assert main(["generate", "a red circle", "--pipeline", "b"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--debug" not in said


def test_a_pipe_for_a_manifest_is_not_waited_for(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = workdir / "trained_models" / "b"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipeline.json")
    assert main(["models"]) == 0
    assert "pipeline.json can't be read: it is no regular file" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["9", 9.0, True, None, 0, -1, [2]])
def test_a_version_is_a_number(version: Any, tmp_path: Path) -> None:
    place = manifest(tmp_path, json.dumps({"name": "a", "parts": {}, "format_version": version}))
    with pytest.raises(
        CheckpointError, match=r"pipeline\.json is damaged: its format_version is .*, expected a number"
    ):
        read_manifest(place)


@pytest.mark.parametrize(
    "place", ["../../etc", "/etc", "a", "a/b/c", "../b", "a/..", "a\\b/c", "a/b\n", "", "https://a/b"]
)
def test_an_id_leads_nowhere_else(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hub"):
        Part(hub=place)
    with pytest.raises(ConfigError, match="openclip"):
        Part(openclip=place)
    folder = manifest(tmp_path / "p", json.dumps({"name": "a", "parts": {"clip": {"hub": place}}}))
    with pytest.raises(CheckpointError, match=r"pipeline\.json is damaged: 'parts\.clip\.hub' "):
        load(folder)
    with pytest.raises(Dalle2Error):
        load_clip(str(tmp_path / place) if place == "" else place)
    assert main(["models", "download", place]) == 2


def test_ids_of_the_hub_are_taken() -> None:
    assert Part(hub="laion/CLIP-ViT-B-32-laion2B-s34B-b79K").hub
    assert Part(openclip="ViT-B-32/laion2b_s34b_b79k").openclip


# JSON and TOML without an end


def deep_png(folder: Path) -> None:
    for name, text in (("p.png", DEEP_OBJECT), ("q.png", NARROW)):
        save_image(Image.new("RGB", (4, 4)), folder / name, {"a": 1})
        info = Image.open(folder / name)
        info.load()
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_itxt("dalle2", text)
        info.save(folder / name, pnginfo=chunks)
        assert read_metadata(folder / name) is None
        assert main(["show", str(folder / name)]) == 1
    raise CheckpointError("says nothing about how it was made")


def deep_weights(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "w.safetensors", metadata={"dalle_2": DEEP_OBJECT})
    load_checkpoint(folder / "w.safetensors")


def deep_clip(folder: Path) -> None:
    (folder / "config.json").write_text(DEEP_OBJECT)
    load_clip(folder)


def deep_index(folder: Path) -> None:
    (folder / "model_index.json").write_text(DEEP_OBJECT)
    load(folder)


def deep_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(DEEP_OBJECT)
    Tokenizer.from_file(folder / "tokenizer.json")


def deep_toml(folder: Path) -> None:
    (folder / "r.toml").write_text(f"a = {DEEP}")
    read_toml(folder / "r.toml")


def deep_row(folder: Path) -> None:
    rows_of('{"file": "a.png", "caption": ' + NARROW + "}", "captions.jsonl", "captions.jsonl")


def deep_caption(folder: Path) -> None:
    caption_json('{"caption": ' + NARROW + "}", "a.json")


READERS: dict[str, Callable[[Path], None]] = {
    "metadata of a picture": deep_png,
    "header of weights": deep_weights,
    "settings of a CLIP": deep_clip,
    "index of a pipeline": deep_index,
    "tokenizer": deep_tokenizer,
    "recipe": deep_toml,
    "row of a table": deep_row,
    "caption": deep_caption,
    "manifest": lambda folder: void(read_manifest(manifest(folder, DEEP_OBJECT))),
    "settings": lambda folder: void(read_object(manifest(folder, NARROW) / "pipeline.json", "")),
}


def void(_: object) -> None:
    pass


@pytest.mark.parametrize("reader", READERS)
def test_what_is_nested_without_an_end_is_one_sentence(reader: str, workdir: Path) -> None:
    with pytest.raises(Dalle2Error) as refused:
        READERS[reader](workdir)
    assert len(str(refused.value)) < 500
    assert "RecursionError" not in str(refused.value)


def test_options_and_caches_with_nested_values(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--set", f"clip.run.lr={'[' * 5000}", "--show"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("HF_HUB_CACHE", str(workdir))
    home = workdir / "models--a--b"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0")
    (home / "snapshots" / "0").mkdir(parents=True)
    (home / "snapshots" / "0" / "model_index.json").write_text(DEEP_OBJECT)
    assert cached("a/b") is None
    (home / "refs" / "main").write_bytes(b"\xff")
    assert cached("a/b") is None
    monkeypatch.setattr(doctor, "shipped_pipelines", lambda: workdir / "shipped")
    manifest(workdir / "shipped" / "x", DEEP)
    assert "nested deeper" in doctor._pipelines()["x"]


def test_json_is_read_to_a_depth_and_a_size(tmp_path: Path) -> None:
    fits = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(parsed(fits)) == fits
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        parsed(f"[{fits}]")
    assert parsed(b"\xef\xbb\xbf[1.5, Infinity]") == [1.5, float("inf")]
    for text in ("[NaN]", "[1e999]", "[-Infinity]"):
        with pytest.raises(ValueError, match="is no finite number"):
            parsed(text, finite=True)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(CheckpointError, match="and a file of settings at most 33,554,432"):
        read_object(tmp_path / "large.json", "")


def test_a_plan_of_a_stranger_is_no_plan(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stages in ([1], "clip", {"a": 1}, [["a"]]):
        (workdir / "p" / "run").mkdir(parents=True, exist_ok=True)
        (workdir / "p" / "run" / "plan.json").write_text(json.dumps({"stages": stages}))
        assert main(["generate", "a red circle", "--pipeline", "p"]) == 1
        assert "p is no pipeline folder" in capsys.readouterr().err


# Weights


def test_whole_numbers_are_no_weights() -> None:
    layer = nn.BatchNorm1d(2)
    state = layer.state_dict()
    whole = {**state, "weight": torch.ones(2, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match=r"of other numbers \(1\): weight is int64 instead of float32"):
        load_tensors(layer, whole, "w")
    with pytest.raises(CheckpointError, match="num_batches_tracked is float32 instead of int64"):
        load_tensors(layer, {**state, "num_batches_tracked": torch.tensor(0.0)}, "w")
    with pytest.raises(CheckpointError, match="weight is complex64 instead of float32"):
        load_tensors(layer, {**state, "weight": torch.ones(2, dtype=torch.complex64)}, "w")
    load_tensors(layer, {**state, "weight": torch.full((2,), 3, dtype=torch.float16)}, "w")
    assert layer.weight.tolist() == [3.0, 3.0]


# Files that may not be read

DENIED = """
import os, sys, contextlib
from pathlib import Path
from dalle_2.pipelines.dvae import load_dvae
from dalle_2.weights.checkpoint import load_checkpoint, unpickled
from dalle_2.weights.pickled_module import module_tensors
from dalle_2.errors import CheckpointError
if os.geteuid() == 0:
    os.seteuid(54321)  # to whom permissions apply
for read in (load_checkpoint, lambda path: unpickled(Path(path)), lambda path: module_tensors(path, ())):
    try:
        read("w.safetensors")
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
def test_a_file_that_may_not_be_read_is_called_that(workdir: Path) -> None:
    save_file({"a": torch.zeros(1)}, workdir / "w.safetensors")
    (workdir / "w.safetensors").chmod(0)
    workdir.chmod(0o755)  # else it would be missing
    environment = {**os.environ, "PYTHONPATH": str(Path(dalle_2.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", DENIED], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["w.safetensors can't be read: Permission denied"] * 3
