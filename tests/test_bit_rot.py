"""Files that the disk has changed after they were written, and notes that are damaged: nothing of them gets further."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_train_cli import Said, train
from training_rig import noise

import dalle_2
from dalle_2 import DALLe2, save
from dalle_2.data.caption_tokens import caption_tokens
from dalle_2.data.shapes import Shapes
from dalle_2.pipelines.find import find_pipeline
from dalle_2.pipelines.moving import MOVING, finish_move

NOTES = ("begun.json", "done.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole training."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    said = train(folder, "shapes-micro")
    assert said.status == 0, said.err
    return folder


@pytest.fixture
def trained(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def flipped(path: Path, where: float = 0.7, bit: int = 6) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1 << bit
    path.write_bytes(content)


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", ["clip/clip.safetensors", "prior/prior.safetensors", "clip/tokenizer.json"])
def test_a_finished_stage_that_rotted_is_named_and_written_anew_from_its_state(name: str, trained: Path) -> None:
    path = trained / "run" / name
    before, manifest = path.read_bytes(), (trained / "pipeline.json").read_bytes()
    flipped(path, bit=0)
    for stages in ((), ("upsampler",)) if "clip" in name else ((),):
        said = train(trained, *stages, "shapes-micro")
        assert (said.status, said.out) == (1, "")
        assert f"{path} is not what its training left there" in said.err.splitlines()[-1]
        assert "delete it, and the same command writes it anew" in said.err.splitlines()[-1]
    assert (trained / "pipeline.json").read_bytes() == manifest
    path.unlink()
    said = train(trained, "shapes-micro")
    assert said.status == 0, said.err
    assert path.read_bytes() == before
    assert (trained / "pipeline.json").read_bytes() == manifest


def test_a_stage_that_rots_while_others_train_does_not_get_into_the_pipeline(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a change of its dates, which tell that a file is to be read again."""
    prior = trained / "run" / "prior" / "prior.safetensors"

    def draft(*_: object) -> None:
        dates = prior.stat()
        flipped(prior)
        os.utime(prior, ns=(dates.st_atime_ns, dates.st_mtime_ns))

    monkeypatch.setattr("dalle_2.training.train.Training._draft", draft)
    said = train(trained, "shapes-micro", "--set", "draft.run.images=80")
    assert (said.status, f"{prior} is not what its training left there" in said.err) == (1, True), said.err


def test_embeddings_that_rotted_are_not_trained_on(trained: Path) -> None:
    [array] = (trained / "run").glob("embeddings-*/z_img.npy")
    before = array.read_bytes()
    flipped(array)
    longer = ("prior", "shapes-micro", "--set", "prior.run.images=80")
    said = train(trained, *longer)
    assert (said.status, f"{array} has changed since it was built" in said.err) == (1, True)
    assert f"delete {array.parent}, and the same command builds it anew" in said.err
    shutil.rmtree(array.parent)
    said = train(trained, *longer)
    assert said.status == 0, said.err
    assert array.read_bytes() == before


def test_tokens_that_rotted_are_made_anew(tmp_path: Path) -> None:
    calls: list[int] = []

    def tokenize(captions: list[str]) -> object:
        calls.append(len(captions))
        return (noise(len(captions), 4) * 100).int()

    shapes = Shapes(8, 20)
    first = np.array(caption_tokens(shapes, tokenize, tmp_path, tokenizer_id="a"))
    for damage in (lambda path: flipped(path), lambda path: path.write_bytes(b"\x93NUMPY"), Path.unlink):
        [path] = tmp_path.glob("tokens-*.npy")
        damage(path)
        assert (caption_tokens(shapes, tokenize, tmp_path, tokenizer_id="a") == first).all()
    caption_tokens(shapes, tokenize, tmp_path, tokenizer_id="a")
    assert calls == [20] * 4


# Notes


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "no text": lambda content: b"\xff\xfe\x00\xd8" + content,
    "deep": lambda content: b"[" * 100_000,
    "a list": lambda content: b"[]",
    "another": lambda content: b'{"settings": {"run": 3}, "data": {"options": {}}}',
    "without data": lambda content: b'{"settings": {}, "data": {}}',
    "nested": lambda content: json.dumps(json.loads(content) | {"draft_begun": {"settings": {}}}).encode(),
}


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_note_is_named_with_what_to_do(note: str, damage: str, run: Path, trained: Path) -> None:
    stage = "decoder" if damage == "nested" else "prior"
    path = trained / "run" / stage / note
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    ways = [train(trained, stage, "shapes-micro"), train(trained, "shapes-micro", "--set", f"{stage}.run.images=80")]
    told = [said for said in ways if said.status]
    for said in told:
        assert_a_sentence(said, path)
    if note == "done.json":
        assert len(told) == 2
        path.unlink()
        assert train(trained, stage, "shapes-micro").status == 0
        assert json.loads(path.read_text()) == json.loads((run / path.relative_to(trained)).read_text())
    else:
        assert len(told) >= 1


def assert_a_sentence(said: Said, path: Path) -> None:
    assert said.status == 1
    assert str(path) in said.err.splitlines()[-1]
    assert "delete it" in said.err.splitlines()[-1]
    assert "--debug" not in said.err
    assert "Traceback" not in said.err


def test_a_done_note_of_an_earlier_release_is_believed(trained: Path) -> None:
    for path in (trained / "run").glob("*/done.json"):
        noted = json.loads(path.read_text())
        assert noted["files"][f"{path.parent.name}.safetensors"]
        del noted["files"]
        path.write_text(json.dumps(noted))
    said = train(trained, "shapes-micro")
    assert (said.status, said.err.count("done before")) == (0, 5)


# A pipeline's folder


def test_a_move_that_was_cut_off_is_finished_by_whoever_loads(
    micro_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = dalle_2.load(micro_pipeline, device="cpu")
    folder = save(old, tmp_path / "pipeline")
    before = parts(folder)
    with monkeypatch.context() as patch:
        moved: list[str] = []
        replace = os.replace

        def stops(source: Path, target: Path) -> None:
            if len(moved) == 3 and Path(source).parent.name == MOVING:
                raise OSError(5, "the plug was pulled")
            moved.extend([Path(source).name] if Path(source).parent.name == MOVING else [])
            replace(source, target)

        patch.setattr(os, "replace", stops)
        with pytest.raises(dalle_2.errors.CheckpointError, match="the plug was pulled"):
            save(shifted(old), folder)
    assert len(moved) == 3
    assert find_pipeline(folder) == folder
    assert not (folder / MOVING).exists()
    assert parts(folder).keys() == before.keys()
    assert all(parts(folder)[name] != before[name] for name in ("prior.safetensors", "decoder.safetensors"))
    new = dalle_2.load(folder, device="cpu")
    assert new.prior is not None
    new.generate(["a red circle"], 1, seeds=0)
    finish_move(folder)  # where nothing is left to do


def shifted(pipeline: DALLe2) -> DALLe2:
    """Another one of the same shapes."""
    for part in (pipeline.prior, pipeline.decoder):
        for parameter in part.parameters():
            parameter.data = parameter.data + 1
    return pipeline
