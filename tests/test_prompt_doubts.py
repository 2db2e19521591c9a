"""What is said of prompts that a pipeline can't follow, and how the files of a run are named."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dalle_2.cli.main import main
from dalle_2.cli.run import Run
from dalle_2.data.scenes import COLOURS, SHAPES
from dalle_2.inference.generation import Generation
from dalle_2.inference.prompt_doubts import words_doubted
from dalle_2.inference.saving import save_new
from dalle_2.paths import shipped_pipelines
from dalle_2.text.tokenizer import Tokenizer

RED = "a red circle"


@pytest.fixture(scope="module")
def shapes() -> Tokenizer:
    return Tokenizer.from_file(shipped_pipelines() / "shapes-tiny" / "tokenizer.json")


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    """Of somebody's own captions, which count and deny."""
    return Tokenizer.train(["two dogs, no cat", "two dogs in a café", "a dog without a leash"], vocab_size=400)


@pytest.mark.parametrize("prompt", ["!!!", "😀🎈", "… – ?", "\u200b"])
def test_prompts_without_a_word_are_told_what_can_be_said(prompt: str, shapes: Tokenizer, own: Tokenizer) -> None:
    (said,) = words_doubted(shapes, [RED, prompt, prompt])
    assert said.startswith(f"there is no word in {prompt!r} for this pipeline to go by; it knows one to three shapes (")
    assert all(word in said for word in (*COLOURS, *SHAPES))
    (said,) = words_doubted(own, [prompt])
    assert said.endswith("; words it knows: dogs, two, café, cat, dog, leash, without")


@pytest.mark.parametrize("prompt", ["two red circles", "3 red circle", "a dozen red circle", "several red circle"])
def test_counts_are_said_to_be_unknown(prompt: str, shapes: Tokenizer) -> None:
    said = words_doubted(shapes, [prompt])
    assert f"learnt no counting from its captions, which never said {prompt.removeprefix('a ').split()[0]}" in said[-1]
    assert "it knows one to three shapes" in said[0]


@pytest.mark.parametrize(
    ("prompt", "word"),
    [("no red circle", "no"), ("a circle, not red", "not"), ("a star isn't red", "isn't"), ("without red", "without")],
)  # fmt: skip
def test_negations_are_said_to_be_unknown(prompt: str, word: str, shapes: Tokenizer) -> None:
    said = words_doubted(shapes, [prompt])
    assert f"learnt no negation from its captions, which never said {word}, and may take what follows" in said[-1]
    assert "it knows one to three shapes" in said[0]


def test_what_captions_said_is_no_doubt(shapes: Tokenizer, own: Tokenizer) -> None:
    assert words_doubted(own, ["two dogs", "no cat", "a dog without a leash"]) == []
    assert words_doubted(own, [unicodedata.normalize("NFD", "a café")]) == []
    assert words_doubted(shapes, [RED, "a medium-sized pink heart to the left of a red ring on beige"]) == []
    assert "never said three" in words_doubted(own, ["three dogs"])[0]


def test_more_shapes_than_a_picture_holds(shapes: Tokenizer, own: Tokenizer) -> None:
    four = "a red circle, a blue star, a pink heart and a green ring"
    (said,) = words_doubted(shapes, [four])
    assert "a prompt names 4 shapes, and no picture that this pipeline learnt from has over 3; it knows" in said
    assert words_doubted(shapes, [four.rpartition(" and ")[0]]) == []
    assert not any("names 4 shapes" in one for one in words_doubted(own, [four]))


@pytest.mark.parametrize(
    ("typo", "meant"), [("circel", "circle"), ("squre", "square"), ("yelow", "yellow"), ("grey", "gray")]
)
def test_a_slip_is_met_with_the_word(typo: str, meant: str, shapes: Tokenizer) -> None:
    (said,) = words_doubted(shapes, [f"a {typo}"])
    assert said.startswith(f"this pipeline never saw {typo} (did you mean {meant}?); it knows")
    (said,) = words_doubted(shapes, ["a ball", "a dog"])
    assert said.startswith("this pipeline never saw ball, dog; it knows")


def test_every_command_that_reads_captions_says_so(
    micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32)).save("a.png")
    for command in (
        ["generate", RED, "--negative", "a zebra", "--prior-guidance", "2"], ["rerank", "a zebra", "a.png"],
        ["probe", "a.png", "--write", "x", "--labels", "a zebra,a circle", "--n", "1", "--steps", "2"],
    ):  # fmt: skip
        assert main([*command, "--pipeline", str(micro_pipeline), "--device", "cpu"]) == 0
        assert "warning: this pipeline never saw zebra" in capsys.readouterr().err


# Names


def test_pictures_sort_in_the_order_in_which_they_were_made(
    micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--pipeline", str(micro_pipeline), "--device", "cpu", "--seed", "8", "--grid", "--quiet", "--steps", "2"]
    assert main(["generate", RED, "a blue square", "--n", "2", "--best-of", "2", *base, "--out", "drawn"]) == 0
    Image.new("RGB", (32, 32)).save("a.png")
    assert main(["variations", "a.png", "--n", "4", *base, "--out", "varied"]) == 0
    for folder in ("drawn", "varied"):
        *made, sheet = sorted(path.stem for path in Path(folder).iterdir())
        assert [name.split("-")[-2] for name in made] == ["000", "001", "002", "003"]
        assert "-grid-" in sheet
    assert [name.split("-")[-1] for name in made] == ["8", "9", "10", "11"]


def test_numbers_have_the_digits_of_the_last(workdir: Path) -> None:
    picture = Image.new("RGB", (1, 1))
    run = Run(Path("out"), "png", grid=False, quiet=True, as_json=False)
    run.digits = 4
    run.save(Generation(index, RED, 5 + index, picture, {}) for index in range(3))
    assert [path.stem.split("-")[-2] for path in sorted(Path("out").iterdir())] == ["0000", "0001", "0002"]


def test_a_long_run_asks_for_the_digits(micro_pipeline: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits: list[int] = []
    monkeypatch.setattr(Run, "save", lambda self, made: digits.append(self.digits))
    for n in ("1", "1000", "1001"):
        assert main(["generate", RED, "--n", n, "--pipeline", str(micro_pipeline), "--device", "cpu"]) == 0
    assert digits == [3, 3, 4]


def test_taken_names_sort_by_their_numbers(tmp_path: Path) -> None:
    picture: Callable[[], Path] = lambda: save_new(Image.new("RGB", (1, 1)), tmp_path, "a", "png", {})  # noqa: E731
    made = [picture() for _ in range(11)]
    assert [path.stem for path in made[1:]] == [f"a-{number:02}" for number in range(2, 12)]
    assert sorted(made[1:]) == made[1:]
