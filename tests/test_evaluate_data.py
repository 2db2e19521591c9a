"""A pipeline of somebody's own pictures: what training keeps out, and what `evaluate --data` says of the rest."""

import json
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_cli import Said, dalle2, train
from torch import Tensor

import dalle_2
from dalle_2 import DALLe2
from dalle_2.cli.main import main
from dalle_2.data.held_out import held_out, left_to_train_on
from dalle_2.data.image_folder import ImageFolder
from dalle_2.data.shapes import Shapes
from dalle_2.errors import DataError, UsageError
from dalle_2.evaluation.captioned import Measured, measure, sheet, table
from dalle_2.evaluation.evaluate import Settings
from dalle_2.evaluation.retrieval import ranks
from dalle_2.evaluation.unseen import Chosen, choose
from dalle_2.pipelines.convert import convert
from dalle_2.pipelines.seen import SEEN, note_seen, read_seen
from dalle_2.presets import preset
from dalle_2.training.card import training_card
from dalle_2.training.expectation import expectation

NAMES = [f"{number:03}.png" for number in range(100)]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def folder_of(place: Path, captions: Sequence[str], *, colours: Sequence[str] | None = None) -> Path:
    """A plain picture for each caption, of the colour that it names, or of another."""
    place.mkdir(parents=True)
    for number, (caption, colour) in enumerate(zip(captions, colours or captions, strict=True)):
        Image.new("RGB", (8, 8), COLOURS[colour]).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(caption)
    return place


# What is kept out


def test_what_is_kept_out_follows_from_the_names() -> None:
    out = held_out(NAMES, 0.1)
    assert len(out) == 10
    assert out != NAMES[:10]
    assert held_out(NAMES[::-1], 0.1) == out
    assert {*out} < {*held_out(NAMES, 0.2)}
    assert held_out(NAMES, 0) == []
    assert len(held_out(NAMES[:3], 0.01)) == 1
    accented = ["é.png", "a.png", "b.png"]
    assert held_out([unicodedata.normalize("NFD", name) for name in accented], 0.4)[0] == unicodedata.normalize(
        "NFD", held_out(accented, 0.4)[0]
    )


def test_the_rest_is_trained_on() -> None:
    assert sorted([*left_to_train_on(NAMES, 0.1), *held_out(NAMES, 0.1)]) == NAMES
    assert left_to_train_on(NAMES, 0) == NAMES
    for share in (1, -0.1, "most"):
        with pytest.raises(UsageError, match="held_out must be at least 0 and below 1, got"):
            left_to_train_on(NAMES, share)
    with pytest.raises(UsageError, match=r"held_out 0\.5 keeps all of 1 pictures out"):
        left_to_train_on(NAMES[:1], 0.5)


def test_a_folder_leaves_its_share_out(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "p", ["red", "green", "blue", "red", "green"])
    whole, part = ImageFolder(place, 8), ImageFolder(place, 8, held_out=0.4)
    files = [[folder.file(index) for index in range(len(folder))] for folder in (whole, part)]
    assert [len(names) for names in files] == [5, 3]
    assert {*files[0]} - {*files[1]} == {*held_out(files[0], 0.4)}
    assert part.fingerprint() != whole.fingerprint()
    assert part.report().skipped == ()
    assert ImageFolder(place, 8, held_out=0.0).fingerprint() == whole.fingerprint()
    digests = [whole.digest(index) for index in range(5)]
    assert digests[0] == digests[3] != digests[1]  # the same red
    (place / "0.png").unlink()
    assert whole.digest(0) == ""


def test_what_was_seen_is_noted_once(tmp_path: Path) -> None:
    assert read_seen(tmp_path) is None
    note_seen(tmp_path, "data", ["b", "a", "", "b"])
    assert read_seen(tmp_path) == {"a", "b"}
    note_seen(tmp_path, "data", (pytest.fail("was noted before") for _ in range(1)))
    note_seen(tmp_path, "other data", [])
    assert read_seen(tmp_path) == frozenset()


def test_what_was_never_seen_is_chosen(tmp_path: Path) -> None:
    folder = ImageFolder(folder_of(tmp_path / "p", ["red", "green", "blue", "red", "green", "blue"]), 8)
    red = {folder.digest(0)}
    assert choose(folder, 9, None, red) == Chosen(choose(folder, 9, None, red).rows, 0)
    assert {*choose(folder, 9, None, red).rows} == {1, 2, 4, 5}
    assert choose(folder, 3, None, red).rows == choose(folder, 9, None, red).rows[:3]
    assert choose(folder, 9, 1.0, red).seen == 2
    assert len(choose(folder, 9, 0.5, None).rows) == 3
    everything = {folder.digest(index) for index in range(6)}
    assert choose(folder, 9, None, everything).seen == 6
    verdicts = [Chosen([1, 2, 3], seen).verdict for seen in (None, 0, 2, 3)]
    told = ["not recorded", "saw none of these 3", "saw 2 of these 3", "saw all of these 3"]
    assert all(words in verdict for words, verdict in zip(told, verdicts, strict=True))
    for share in (0.0, 1.5):
        with pytest.raises(UsageError, match="held-out must be above 0 and at most 1"):
            choose(folder, 9, share, None)
    with pytest.raises(UsageError, match="measuring takes at least 2 captioned pictures, got 1 of 6"):
        choose(folder, 9, 0.1, None)


# What is measured


def test_ranks_have_known_answers() -> None:
    eye = torch.eye(5)
    assert ranks(eye, eye)[1:] == (1.0, 1.0)
    assert ranks(eye.roll(1, 0), eye).first == 0
    mixed = ranks(torch.nn.functional.normalize(eye + 2 * eye.roll(1, 0)), eye)
    assert (mixed.first, mixed.median) == (0.0, 2.0)


def test_embeddings_that_are_all_the_same_find_nothing() -> None:
    same = torch.nn.functional.normalize(torch.randn(1, 64)).expand(9, 64)
    other = torch.nn.functional.normalize(torch.randn(9, 64))
    for queries, pictures in ((other, same), (same, same)):
        found = ranks(queries, pictures)
        assert (found.first, found.median) == (pytest.approx(found.chance_first), found.chance_median)
    assert ranks(same, other).median == 5


class Painter(DALLe2):
    """Paints the colour that a caption names, or the one `shift` places on; its CLIP sees colours."""

    def __init__(self, shift: int = 0, *, blind: bool = False) -> None:
        self.shift, self.blind, self.calls = shift, blind, []

    def embed(self, prompts: Sequence[str], steps: int | None = None, **settings: Any) -> Tensor:  # type: ignore[override]
        self.calls.append(settings | {"steps": steps})
        return torch.ones(len(prompts), 3) if self.blind else self._encode_text(list(prompts))

    def decode(self, z_img: Tensor, steps: int | None = None, **settings: Any) -> Tensor:  # type: ignore[override]
        self.calls.append(settings | {"steps": steps})
        return 2 * z_img.roll(self.shift, 1)[:, :, None, None].expand(-1, -1, 8, 8) - 1

    upsamplers = ()  # type: ignore[assignment]

    def _planned_first_prior(self, name: Any = None) -> Any:
        return self

    def _encode_text(self, prompts: list[str]) -> Tensor:
        return torch.tensor([[float(colour == prompt) for colour in COLOURS] for prompt in prompts])

    def _encode_images(self, images: list[Image.Image]) -> Tensor:
        return torch.tensor(np.stack([np.asarray(image)[0, 0] / 255 for image in images])).float()


def measured(place: Path, painter: Painter, **settings: Any) -> Measured:
    folder = ImageFolder(place, 8)
    return measure(painter, folder, range(len(folder)), Settings(batch=2, **settings))


@pytest.mark.parametrize(("shift", "drawn", "shuffled"), [(0, 1.0, 0.0), (1, 0.0, 0.5)])
def test_similarities_are_to_own_and_other_captions(shift: int, drawn: float, shuffled: float, tmp_path: Path) -> None:
    found = measured(folder_of(tmp_path / "p", ["red", "green", "blue", "red", "green", "blue"]), Painter(shift))
    assert found.drawn.value == pytest.approx(drawn, abs=1e-6)
    assert found.shuffled is not None
    assert found.shuffled.value == pytest.approx(shuffled, abs=1e-6)
    assert found.true.value == pytest.approx(1.0)
    assert found.retrieval is not None
    assert (found.of, found.retrieval.first, found.retrieval.median) == ("prior", 0.5, 1.5)  # of two equal pictures
    assert [row.caption for row in found.rows[:2]] == ["red", "green"]
    assert [row.seed for row in found.rows] == [Settings().seed + k for k in range(6)]


def test_true_pictures_of_other_captions_are_the_bound(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "p", ["red", "green", "blue"], colours=["green", "green", "blue"])
    found = measured(place, Painter(), embeddings="image")
    assert found.true.value == pytest.approx(2 / 3)
    assert found.true.low < 2 / 3 < found.true.high
    assert (found.of, found.retrieval) == ("image", None)
    assert found.drawn.value == pytest.approx(2 / 3)  # it paints what it was shown
    assert "closest" not in table(found)


def test_a_blind_prior_is_at_chance(tmp_path: Path) -> None:
    found = measured(folder_of(tmp_path / "p", ["red", "green", "blue"]), Painter(blind=True))
    assert found.retrieval is not None
    assert (found.retrieval.first, found.retrieval.median) == (pytest.approx(1 / 3), 2.0)


def test_one_caption_for_all_has_no_chance_to_compare(tmp_path: Path) -> None:
    found = measured(folder_of(tmp_path / "p", ["red", "red"], colours=["red", "blue"]), Painter())
    assert found.shuffled is None
    assert "all captions are the same" in table(found)
    assert json.loads(json.dumps(found.as_json()))["clip_similarity"]["shuffled"] is None


def test_pictures_are_drawn_as_asked(tmp_path: Path) -> None:
    painter = Painter()
    place = folder_of(tmp_path / "p", ["red", "green", "blue"])
    measured(place, painter, steps=7, guidance=2.0, sampler="heun", candidates=5, seed=3)
    embedded, decoded = painter.calls[:2]
    assert embedded == {"steps": 7, "seeds": [3, 4], "use_prior": True, "prior": None, "candidates": 5}
    assert decoded == {
        "steps": 7, "seeds": [3, 4], "guidance": 2.0, "sampler": {"decoder": "heun"}, "captions": ["red", "green"],
    }  # fmt: skip
    assert painter.calls[2]["seeds"] == [5]


def test_the_sheet_has_the_true_picture_beside_the_drawn(tmp_path: Path) -> None:
    found = measured(folder_of(tmp_path / "p", ["red", "green"]), Painter(shift=1))
    assert [found.pairs[0].getpixel((at, 64)) for at in (64, 196)] == [COLOURS["red"], COLOURS["green"]]
    assert sheet(found).width > 2 * found.pairs[0].width


def test_broken_pictures_are_not_measured(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "p", ["red", "green", "blue"])
    (place / "1.png").write_bytes(b"no picture")
    assert [row.caption for row in measured(place, Painter()).rows] == ["red", "blue"]
    folder = ImageFolder(place, 8)
    (place / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of 3 pictures can be read, and measuring takes two"):
        measure(Painter(), folder, range(3), Settings())


def test_it_draws_what_generate_draws(micro_pipeline: Path, tmp_path: Path) -> None:
    pipeline = dalle_2.load(micro_pipeline, device="cpu")
    place = folder_of(tmp_path / "p", ["red", "green"])
    found = measure(pipeline, ImageFolder(place, 32), [0, 1], Settings(seed=3))
    wanted = pipeline.generate(["red", "green"], seeds=3, micro_batch=2)
    cosines = torch.nn.functional.cosine_similarity(
        pipeline._encode_images(dalle_2.images.to_pils(wanted)), pipeline._encode_text(["red", "green"])
    )
    assert [row.drawn for row in found.rows] == pytest.approx(cosines.tolist(), abs=2e-3)


# The whole way: train on a part, evaluate on the rest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve captioned pictures, in a folder with a space in its name."""
    folder, shapes = tmp_path_factory.mktemp("data") / "my pictures", Shapes(48, 12)
    folder.mkdir()
    for index in range(12):
        Image.fromarray(shapes[index].image).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(shapes.caption(index))
    return folder


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    out = tmp_path_factory.mktemp("out") / "my run"
    return out, train(out, "--data", str(place), "--held-out", "0.25")


def evaluated(pipeline: Path, out: Path, *arguments: str) -> tuple[Said, dict[str, Any]]:
    command = ["evaluate", "--pipeline", str(pipeline), "--out", str(out), "--device", "cpu", "--quiet", "--steps", "1"]
    said = dalle2(*command, *arguments)
    report = out / "report.json"
    return said, json.loads(report.read_text()) if report.exists() else {}


def test_a_training_says_and_notes_what_it_keeps_out(trained: tuple[Path, Said], place: Path) -> None:
    out, said = trained
    assert said.status == 0, said.err
    assert "25% of the pictures are kept out, for dalle2 evaluate --data to measure on" in said.err
    assert f"--pipeline '{out}'" in said.out
    seen = read_seen(out)
    assert seen is not None
    assert len(seen) == 9
    card = (out / "README.md").read_text()
    assert "dalle2 evaluate --pipeline THIS_FOLDER --data YOUR_PICTURES" in card
    assert "25% of the pictures were kept out of training, to measure on." in card
    options = json.loads((out / "pipeline.json").read_text())["training"]["recipe"]["data"]["options"]
    assert options == {"held_out": 0.25}
    assert read_seen(convert(str(out), out.with_name("converted"))) == seen


def test_what_training_never_saw_is_measured(trained: tuple[Path, Said], place: Path, tmp_path: Path) -> None:
    said, report = evaluated(trained[0], tmp_path / "report", "--data", str(place))
    assert said.status == 0, said.err
    out = [path.name for path in held_out_of(place)]
    assert sorted(row["file"] for row in report["results"][0]["pictures"]) == sorted(out)
    assert report["data"] == {"folder": str(place), "held_out": None, "pictures": 12, "seen": 0}
    assert "training saw none of these 3 pictures" in said.out
    assert said.out == (tmp_path / "report" / "report.md").read_text()
    assert report["results"][0]["retrieval"]["of"] == "prior"
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.md", "pictures.png"}


def held_out_of(place: Path) -> list[Path]:
    return [place / name for name in held_out(sorted(path.name for path in place.glob("*.png")), 0.25)]


def test_pictures_are_known_by_any_name_and_anywhere(trained: tuple[Path, Said], place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in place.iterdir():
        shutil.copy(path, moved / f"z{path.name}")
    said, report = evaluated(trained[0], tmp_path / "report", "--data", str(moved))
    names = sorted(row["file"] for row in report["results"][0]["pictures"])
    assert names == sorted(f"z{path.name}" for path in held_out_of(place))
    assert "training saw none of these 3 pictures" in said.out


@pytest.mark.parametrize(
    ("share", "count", "seen", "words"),
    [("0.25", 3, 0, "none of these 3"), ("0.5", 6, 3, "3 of these 6"), ("1", 12, 9, "9 of these 12")],
)
def test_a_share_is_measured_and_its_worth_said(
    trained: tuple[Path, Said], place: Path, tmp_path: Path, share: str, count: int, seen: int, words: str
) -> None:
    said, report = evaluated(trained[0], tmp_path / "report", "--data", str(place), "--held-out", share)
    assert said.status == 0, said.err
    assert len(report["results"][0]["pictures"]) == count
    assert report["data"]["seen"] == seen
    assert f"training saw {words} pictures" in said.out


def test_pictures_that_were_all_seen_are_said_to_be(trained: tuple[Path, Said], place: Path, tmp_path: Path) -> None:
    familiar = tmp_path / "familiar"
    shutil.copytree(place, familiar, ignore=shutil.ignore_patterns(*(path.name for path in held_out_of(place))))
    said, report = evaluated(trained[0], tmp_path / "report", "--data", str(familiar), "--n", "4")
    assert "training saw all of these 4 pictures: the figures say how well it knows them by heart" in said.out
    assert report["data"]["seen"] == len(report["results"][0]["pictures"]) == 4
    bare = tmp_path / "bare"
    shutil.copytree(trained[0], bare, ignore=shutil.ignore_patterns("run", SEEN))
    said, _ = evaluated(bare, tmp_path / "again", "--data", str(place))
    assert "what this pipeline was trained on is not recorded: it may have seen these pictures" in said.out


def test_without_data_it_says_what_to_give(trained: tuple[Path, Said], place: Path, tmp_path: Path) -> None:
    said, report = evaluated(trained[0], tmp_path / "report")
    assert (said.status, said.out, report) == (2, "", {})
    assert (
        f"does not draw Shapes, whose scenes are all that is measured without --data: say --data '{place}'" in said.err
    )
    assert said.err.count("\n") == 1


def test_the_card_gets_the_figures(trained: tuple[Path, Said], place: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(trained[0], mine, ignore=shutil.ignore_patterns("run"))
    for _ in range(2):
        said, _ = evaluated(mine, tmp_path / "report", "--data", str(place), "--card")
        assert said.status == 0, said.err
    card = (mine / "README.md").read_text()
    assert card.count("## Figures and failures") == 1
    assert "| CLIP similarity of drawn pictures to their captions |" in card
    assert "training saw none of these 3 pictures" in card


def test_a_pipeline_of_shapes_saw_nobodys_pictures(place: Path, tmp_path: Path) -> None:
    said, report = evaluated(Path("shapes-tiny"), tmp_path / "report", "--data", str(place), "--n", "2")
    assert said.status == 0, said.err
    assert "training saw none of these 2 pictures" in said.out
    assert report["results"][0]["clip_similarity"]["true"]["value"] > 0.3


def test_pipelines_of_unknown_pictures_are_refused_too(
    micro_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, training, words in (("karlos", {"converted_from": "karlo"}, ["circle"]), ("cats", {}, ["a", "cat"])):
        folder = Path(shutil.copytree(micro_pipeline, tmp_path / name))
        for file, change in (
            ("pipeline.json", {"training": training}),
            ("tokenizer.json", {"dalle_2": {"known_words": words}}),
        ):
            content = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(content | change))
        assert main(["evaluate", "--pipeline", str(folder), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "does not draw Shapes" in said
        assert "say --data FOLDER to measure it on your captioned pictures" in said
    assert main(["evaluate", "--pipeline", "karlo", "--out", str(tmp_path / "out")]) == 2
    assert "karlo does not draw Shapes" in capsys.readouterr().err  # before anything is fetched


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--data", ".", "--splits", "a,b"], 2, "--splits a,b is of Shapes, and --data measures on other pictures"),
        (["--held-out", "0.1"], 2, "--held-out 0.1 is a share of a folder's pictures: name the folder with --data"),
        (["--data", "p", "--held-out", "0"], 2, "held-out must be above 0 and at most 1, got 0.0"),
        (["--data", "nowhere"], 1, "nowhere doesn't exist: name a folder of pictures with captions"),
        (["--data", "p", "--n", "1"], 2, "measuring takes at least 2 captioned pictures, got 1 of 2"),
        (["--data", "p", "--embeddings", "text", "--candidates", "3"], 2, "candidates are for embeddings by the prior"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    arguments: list[str], status: int, words: str, micro_pipeline: Path, workdir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder_of(Path("p"), ["red", "green"])
    assert main(["evaluate", "--pipeline", str(micro_pipeline), "--device", "cpu", *arguments]) == status
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not Path("evaluation").exists()


def test_shapes_keep_nothing_out(workdir: Path) -> None:
    said = dalle2("train", "shapes-micro", "--held-out", "0.1")
    assert (said.status, "Shapes has no option 'held_out'" in said.err, said.err.count("\n")) == (2, True, 1)
    assert "held-out" not in expectation(preset("shapes-micro"), Path("out"))
    recipe = preset("my-pictures")
    assert "it learns from all pictures: --held-out 0.1 keeps some" in expectation(recipe, Path("out"))
    assert "kept out" not in training_card(recipe, {})
