"""The editing commands: the files they leave, what they say, and what they refuse before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_2.cli.main import main
from dalle_2.metadata import read_metadata

SIZE = 32


@pytest.fixture
def run(micro_pipeline: Path, workdir: Path) -> Callable[..., int]:
    """The command line with the micro pipeline, in a folder that holds a picture and a mask."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(blocks).save("picture.png")
    Image.fromarray(blocks[::-1].copy()).save("other.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[8:20, 8:24] = 255
    Image.fromarray(mask).save("mask.png")

    def call(command: str, *arguments: str) -> int:
        return main([command, *arguments, "--pipeline", str(micro_pipeline), "--device", "cpu", "--seed", "3"])

    return call


def made() -> list[Path]:
    return sorted(Path("generations").glob("*.png")) if Path("generations").exists() else []


COMMANDS: list[tuple[list[str], int, str]] = [
    (["variations", "picture.png", "--n", "2", "--steps", "3"], 2, "variation"),
    (["interpolate", "picture.png", "other.png", "--n", "3", "--steps", "3"], 3, "interpolation"),
    (["interpolate", "a red circle", "a blue square", "--captions", "--n", "2", "--steps", "3"], 2, "interpolation"),
    (["text-diff", "picture.png", "--from", "a red circle", "--to", "a blue circle", "--n", "2", "--steps", "3"], 2,
     "text diff"),
    (["inpaint", "picture.png", "a red circle", "--mask", "mask.png", "--candidates", "2"], 1, "inpainting"),
    (["outpaint", "picture.png", "a red circle", "--right", "8", "--steps", "2"], 1, "outpainting"),
    (["inpaint", "picture.png", "a red circle", "--mask", "mask.png", "--sampler", "dpm++2m", "--prior", "diffusion",
      "--steps", "3", "--candidates", "1"], 1, "inpainting"),
    (["image-to-image", "picture.png", "a red circle", "--strength", "0.8", "--steps", "5"], 1, "image to image"),
    (["probe", "picture.png", "--write", "star", "--labels", "a star,a circle", "--n", "1", "--steps", "2"], 2,
     "typographic attack"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "count", "task"), COMMANDS, ids=lambda value: None)
def test_every_edit_leaves_its_pictures(
    run: Callable[..., int], arguments: list[str], count: int, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 0
    pictures = made()
    assert len(pictures) == count
    metadata = read_metadata(pictures[0])
    assert metadata is not None
    assert metadata["task"] == task
    wide = 40 if arguments[0] == "outpaint" else SIZE
    assert Image.open(pictures[0]).size == (wide, SIZE)
    assert f"{count} picture" in capsys.readouterr().err


def test_outpainting_says_which_frame_it_is_at(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["outpaint", "picture.png", "a red circle", "--right", "8", "--top", "8", "--steps", "2"]
    assert run(*words, "--candidates", "2") == 0
    frames = [line for line in capsys.readouterr().err.splitlines() if line.startswith("frame")]
    assert frames == ["frame 1 of 3", "frame 2 of 3", "frame 3 of 3"]
    assert (read_metadata(made()[0]) or {})["candidates"] == 2
    assert run(*words, "--candidates", "1", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_single_step_is_one(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("image-to-image", "picture.png", "a red circle", "--strength", "1", "--steps", "1") == 0
    said = capsys.readouterr().err
    assert "decoder: 1 step, " in said
    assert "upsampler-32: 2 steps, " in said


def test_inpainting_keeps_the_pixels_of_the_file(run: Callable[..., int]) -> None:
    assert run("inpaint", "picture.png", "a red circle", "--mask", "mask.png", "--candidates", "1") == 0
    before, after = (np.asarray(Image.open(path)) for path in ("picture.png", made()[0]))
    outside = np.asarray(Image.open("mask.png")) == 0
    assert (before[outside] == after[outside]).all()
    assert (before[~outside] != after[~outside]).any()


def test_a_jpeg_is_said_to_keep_no_pixel_exactly(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inpaint", "picture.png", "a red circle", "--mask", "mask.png", "--candidates", "1", "--steps", "2"]
    assert run(*words, "--format", "jpg") == 0
    assert "a JPEG changes every pixel a little" in capsys.readouterr().err
    assert run(*words) == 0
    assert "JPEG" not in capsys.readouterr().err


def test_transparent_parts_are_holes(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.open("picture.png").convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (4, 4, 20, 20))
    picture.putalpha(alpha)
    picture.save("holed.png")
    assert run("inpaint", "holed.png", "a red circle", "--candidates", "1") == 0
    Image.open("picture.png").convert("RGBA").save("opaque.png")
    for name in ("picture.png", "opaque.png"):
        assert run("inpaint", name, "a red circle") == 2
        assert "no transparent part and no mask" in capsys.readouterr().err


def test_pictures_come_in_every_form(run: Callable[..., int]) -> None:
    picture = Image.open("picture.png")
    picture.convert("CMYK").save("cmyk.jpg")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save("deep.png")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save("turned.jpg", exif=exif)
    picture.save("moving.gif", save_all=True, append_images=[picture.rotate(90)])
    plain = np.asarray(picture).astype(int)
    wanted = {
        "cmyk.jpg": plain, "deep.png": np.asarray(picture.convert("L").convert("RGB")).astype(int),
        "turned.jpg": np.rot90(plain, 3), "moving.gif": plain,
    }  # fmt: skip
    Image.fromarray(np.where(np.indices((SIZE, SIZE))[0] < 4, 255, 0).astype(np.uint8)).save("top.png")
    for name, pixels in wanted.items():
        assert run("inpaint", name, "a red circle", "--mask", "top.png", "--candidates", "1", "--steps", "2") == 0
        newest = max(made(), key=lambda path: path.stat().st_mtime_ns)
        kept = np.asarray(Image.open(newest)).astype(int)[4:] - pixels[4:]
        assert np.abs(kept).mean() < 12  # as near as JPEG and a palette let it be
    assert len(made()) == 4


REFUSED: list[tuple[list[str], str]] = [
    (["variations", "missing.png"], "there is no file missing.png"),
    (["variations", "truncated.png"], "can't read truncated.png"),
    (["variations", "picture.png", "--eta", "1"], "'eta'"),
    (["variations", "picture.png", "--steps", "1001"], "steps must be a whole number from 1 to 1000"),
    (["text-diff", "picture.png", "--from", "a", "--to", "b", "--theta", "0"], "theta must lie above 0"),
    (["text-diff", "picture.png", "--from", "a", "--to", "b", "--theta", "1.5"], "theta must lie above 0"),
    (["inpaint", "picture.png", "a circle", "--mask", "wide.png"], "mask has 48 x 32 pixels and the picture 32 x 32"),
    (["inpaint", "picture.png", "a circle", "--mask", "nothing.png"], "the mask hides nothing"),
    (["inpaint", "picture.png", "a circle", "--mask", "all.png"], "the mask hides the whole picture"),
    (["inpaint", "picture.png", "", "--mask", "mask.png"], "the prompt is empty"),
    (["inpaint", "picture.png", "a circle", "--mask", "mask.png", "--candidates", "9999"], "from 1 to 1000, got 9999"),
    (["inpaint", "picture.png", "a circle", "--mask", "mask.png", "--negative", ""], "the negative prompt is empty"),
    (["outpaint", "picture.png", "a circle"], "at least one side must be continued, each by at most 16 pixels"),
    (["outpaint", "picture.png", "a circle", "--left", "17"], "got left 17, right 0, top 0, bottom 0"),
    (["image-to-image", "picture.png", "a circle", "--strength", "0"], "strength must lie above 0"),
    (["image-to-image", "picture.png", "a circle", "--sampler", "unpic"], "unipc"),
    (["image-to-image", "picture.png", "a circle", "--prior", "ar"], "no autoregressive prior"),
    (["generate", "a circle", "--noise-level", "3"], "no upsampler of this run was trained with noise levels"),
    (["upscale", "picture.png", "--noise-level", "3"], "no upsampler of this run was trained with noise levels"),
    (["interpolate", "picture.png", "missing.png"], "there is no file missing.png"),
    (["interpolate", "a red circle", "a star"], "there is no file a red circle: if it is a caption, say --captions"),
    (["interpolate", "picture.png", "other.png", "--prior", "ar"], "--prior is for captions"),
    (["interpolate", "a red circle", "a star", "--captions", "--fixed-noise"], "--fixed-noise is for pictures"),
    (["reconstruct", "picture.png", "--directions", "2,x"], "whole numbers with commas between"),
    (["reconstruct", "picture.png"], "trained on principal directions of them: use such a pipeline, like shapes-tiny"),
    (["probe", "picture.png", "--write", "", "--labels", "a star,a circle"], "the word is empty"),
    (["probe", "picture.png", "--write", "星", "--labels", "a star,a circle"], "the font has no sign for '星'"),
    (["probe", "picture.png", "--write", "star" * 9, "--labels", "a,b"], "too long for a picture 32 pixels wide"),
    (["probe", "picture.png", "--write", "star", "--labels", "a star,"], "label 2 of 2 is empty"),
    (["probe", "picture.png", "--write", "star", "--labels", "a star"], "give at least 2, got 1"),
    (["probe", "picture.png", "--write", "star", "--labels", "a,b", "--steps", "1001"], "from 1 to 1000"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=lambda value: None)
def test_what_makes_no_sense_is_refused_in_a_sentence_and_nothing_is_written(
    run: Callable[..., int], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("truncated.png").write_bytes(Path("picture.png").read_bytes()[:60])
    Image.new("L", (48, SIZE), 255).save("wide.png")
    Image.new("L", (SIZE, SIZE), 0).save("nothing.png")
    Image.new("L", (SIZE, SIZE), 255).save("all.png")
    assert run(*arguments) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert made() == []
    assert not Path("generations").exists()


LATE: list[list[str]] = [
    ["inpaint", "picture.png", "a circle", "--mask", "mask.png"],
    ["outpaint", "picture.png", "a circle", "--right", "4"],
    ["image-to-image", "picture.png", "a circle"],
    ["text-diff", "picture.png", "--from", "a red circle", "--to", "a blue circle"],
    ["interpolate", "a circle", "a star", "--captions"],
]


@pytest.mark.parametrize("arguments", LATE, ids=lambda arguments: arguments[0])
def test_settings_of_the_decoder_are_refused_before_the_prior_works(
    run: Callable[..., int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--steps", "1001") == 2
    said = capsys.readouterr().err
    assert "steps must be a whole number from 1 to 1000 for the decoder" in said
    assert "prior" not in said


def test_a_probe_is_refused_before_clip_is_asked(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("probe", "picture.png", "--write", "star", "--labels", "a,b", "--steps", "1001") == 2
    assert "%" not in capsys.readouterr().err


def test_words_that_the_pipeline_never_saw_are_named(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inpaint", "picture.png", "a zebra", "--mask", "mask.png", "--candidates", "1", "--steps", "2"]
    assert run(*words) == 0
    assert "warning: this pipeline never saw zebra" in capsys.readouterr().err


def test_the_best_of_several_is_kept(run: Callable[..., int]) -> None:
    assert run("generate", "a red circle", "--best-of", "3", "--n", "2") == 0
    pictures = made()
    assert len(pictures) == 2
    scores = [(read_metadata(path) or {})["clip"] for path in pictures]
    assert all(-1 <= score <= 1 for score in scores)


def test_pictures_are_ranked_by_what_they_show(
    micro_pipeline: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rerank", "a red circle", "picture.png", "other.png", "--pipeline", str(micro_pipeline), "--json"]
    assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["file"] for line in lines} == {"picture.png", "other.png"}
    assert lines[0]["clip"] >= lines[1]["clip"]
    assert main([*words[:-1], "--keep", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(lines[0]["file"])
    assert main(["rerank", "a red circle", "missing.png"]) == 1
    assert "there is no file missing.png" in capsys.readouterr().err


def test_a_negative_prompt_and_a_threshold_are_remembered(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "a red circle", "--negative", "a star"]
    assert run(*words) == 2
    assert "a negative prompt changes nothing here" in capsys.readouterr().err
    assert run(*words, "--prior-guidance", "2", "--threshold", "dynamic") == 0
    metadata = read_metadata(made()[0])
    assert metadata is not None
    assert (metadata["negative"], metadata["threshold"]) == ("a star", "dynamic")
    assert run("generate", "a red circle", "--text-guidance", "2") == 2
    assert "this pipeline's reads none" in capsys.readouterr().err
