"""A training goes on where its pictures have been moved to, and lists them once."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle_2.cli.main import main
from dalle_2.config import override
from dalle_2.data.folders import LocalFolder
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError
from dalle_2.presets import resolve
from dalle_2.training.placeless import placeless
from dalle_2.training.train import Training

SMALL = {
    "clip.captions": 20, "clip.run.images": 16, "clip.run.batch": 8, "clip.vocabulary": 300,
    "clip.config.vision.image_size": 32, "clip.config.vision.depth": 1, "clip.config.vision.width": 32,
    "clip.config.vision.heads": 2, "clip.config.text.depth": 1, "clip.config.text.width": 32,
    "clip.config.text.heads": 2, "clip.config.embed_dim": 16, "clip.config.phrases": 64, "clip.config.thumbnail": 8,
    "clip.encoder": None,
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight captioned pictures."""
    folder = tmp_path / "first place"
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (32, 32), (30 * index, 200, 30)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a thing of shade {index}")
    return folder


def training(pictures: Path, out: Path, said: list[str] | None = None, **changes: Any) -> Training:
    recipe = override(resolve(["shapes-micro"], data=pictures), SMALL | changes)
    return Training(recipe, out, say=([] if said is None else said).append)


def test_moved_pictures_are_the_same_pictures(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    training(pictures, out).train(["clip"])
    moved = pictures.rename(tmp_path / "another")
    said: list[str] = []
    training(moved, out, said).train(["clip"])
    assert said == [f"clip: done before, in {out / 'run/clip/clip.safetensors'}"]
    longer = training(moved, out, **{"clip.run.images": 24, "data.options": {"follow_links": True}})
    assert longer.train(["clip"]) is None
    (moved / "0.txt").write_text("something else")
    with pytest.raises(DataError, match="the pictures in .*another have changed since .*out/run was begun: put them"):
        training(moved, out).train(["clip"])


def test_so_are_those_of_a_run_that_wrote_where_they_lay(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    training(pictures, out).train(["clip"])
    for path in (out / "run/clip").glob("*.json"):
        if path.name in ("begun.json", "done.json"):
            identity = json.loads(path.read_text())
            identity["data"]["source"] = f"folder:{pictures}"
            path.write_text(json.dumps(identity))
    said: list[str] = []
    training(pictures.rename(tmp_path / "another"), out, said).train(["clip"])
    assert said[0].startswith("clip: done before")


def test_a_stage_knows_the_ones_it_goes_on_from_without_their_place() -> None:
    data = {"source": "folder:/a", "options": {"resize": "pad", "follow_links": True}, "pictures": "0f"}
    inner = {"data": data, "settings": {}}
    identity = {"data": data, "decoder_begun": inner, "draft_begun": None, "seed": 0}
    bare = {"options": {"resize": "pad"}, "pictures": "0f"}
    assert placeless(identity) == {
        "data": bare, "decoder_begun": {"data": bare, "settings": {}}, "draft_begun": None, "seed": 0,
    }  # fmt: skip
    procedural = {"data": {"source": "shapes", "options": {}}}
    assert placeless(procedural) == procedural


def test_a_training_lists_a_folder_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, sized = [], []
    names, size = LocalFolder.listed, ImageFolder._stamp
    monkeypatch.setattr(LocalFolder, "listed", lambda self: listed.append(1) or names(self))
    monkeypatch.setattr(ImageFolder, "_stamp", lambda self, name: sized.append(name) or size(self, name))
    training(pictures, tmp_path / "out").train(["clip"])
    assert (len(listed), len(sized)) == (2, 16)  # at the start, and at the end to see whether anything changed


def test_the_command_follows_links_when_it_is_told_to(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).symlink_to(path)
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "--follow-links" in capsys.readouterr().err
    assert main(["train", "--data", str(folder), "--follow-links", "--show"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["options"] == {"follow_links": True}
    followed = training(folder, tmp_path / "out", **{"data.options": {"follow_links": True}})
    assert followed.check(["clip"]) == ["clip"]
