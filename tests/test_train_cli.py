"""`dalle2 train` as a person runs it: all stages, again, one stage, a folder of pictures, and what goes wrong."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

import dalle_2
from dalle_2.cli.main import main
from dalle_2.data.shapes import Shapes
from dalle_2.models.checkpoints import load_model
from dalle_2.presets import preset
from dalle_2.training.alone import alone

STAGES = preset("shapes-micro").stages

# shapes-micro, smaller still: a few steps of each stage, 32-px pictures and then 64-px ones.
MINUSCULE = {
    "embeddings": 64,
    "clip": {"captions": 200, "run.images": 64, "run.batch": 16},
    "clip.config": {"vision.image_size": 32, "vision.depth": 1, "vision.width": 32, "vision.heads": 2, "text.depth": 1,
                    "text.width": 32, "text.heads": 2, "embed_dim": 16, "phrases": 64, "thumbnail": 8},
    "prior": {"run.images": 64, "run.batch": 32, "config.width": 16, "config.depth": 1, "config.heads": 2,
              "config.steps": 2},
    "draft": {"run.images": 64, "run.batch": 16, "config.image_size": 32, "config.width": 16, "config.channels": 8},
    "decoder": {"run.images": 64, "run.batch": 16, "run.preview_every": 64, "config.image_size": 32, "config.steps": 2,
                "config.unet.channels": 16, "config.unet.t_dim": 16, "config.unet.head_channels": 16},
    "upsampler": {"run.images": 64, "run.batch": 16, "run.preview_every": 64, "config.image_size": 64,
                  "config.low_res_size": 32, "config.crop": 32, "config.steps": 2, "config.unet.channels": 8,
                  "config.unet.t_dim": 16},
}  # fmt: skip

SIZES = ("image_size=128", "low_res_size=64", "crop=32", "steps=2", "unet.channels=8", "unet.t_dim=16")
SECOND = tuple(word for pair in SIZES for word in ("--set", f"upsampler_2.config.{pair}"))


def minuscule(*without: str) -> list[str]:
    pairs: list[str] = []
    for section, values in MINUSCULE.items():
        if section in without:
            continue
        changes = values.items() if isinstance(values, dict) else [("", values)]
        pairs += [f"{section}.{key}={value}".replace(".=", "=") for key, value in changes]
    return [word for pair in pairs for word in ("--set", pair)]


class Said(NamedTuple):
    """A command's exit status and its two streams."""

    status: int
    out: str
    err: str


def dalle2(*arguments: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return Said(status, out.getvalue(), err.getvalue())


def train(folder: Path, *arguments: str) -> Said:
    settings = minuscule("draft") if "--data" in arguments else minuscule()  # a folder has no draft
    return dalle2("train", "--out", str(folder), "--device", "cpu", "--lanes", "1", *settings, *arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said, Said]:
    """One stage alone, then the command for all of them."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    return folder, train(folder, "clip", "shapes-micro"), train(folder, "shapes-micro")


@pytest.fixture
def trained(runs: tuple[Path, Said, Said], tmp_path: Path) -> Path:
    """A copy of the trained folder, free to be changed."""
    return Path(shutil.copytree(runs[0], tmp_path / "copy"))


# The whole way


def test_one_stage_alone_says_what_is_still_missing(runs: tuple[Path, Said, Said]) -> None:
    _, first, _ = runs
    assert (first.status, first.out) == (0, "")
    assert "stages done: clip; the pipeline needs the others too" in first.err


def test_one_command_trains_the_rest(runs: tuple[Path, Said, Said]) -> None:
    folder, _, second = runs
    assert second.status == 0, second.err
    assert "clip: done before" in second.err
    assert all(f"{stage}: from the start, to 64 images" in second.err for stage in ("embeddings", *STAGES[1:]))
    assert second.out.splitlines()[0] == str(folder)
    assert f"--pipeline {folder}" in second.out


def test_two_lanes_train_the_same_weights(runs: tuple[Path, Said, Said], tmp_path: Path) -> None:
    said = train(tmp_path, "shapes-micro", "--lanes", "2")
    assert said.status == 0, said.err
    assert all(f"{stage}: from the start, to 64 images" in said.err for stage in STAGES)
    for stage in STAGES:
        one, two = (load_model(folder / "run" / stage / f"{stage}.safetensors") for folder in (runs[0], tmp_path))
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_the_folder_is_a_pipeline(runs: tuple[Path, Said, Said]) -> None:
    pipeline = dalle_2.load(runs[0], device="cpu")
    x = pipeline.generate(["a red circle", "a blue square"], seeds=1)
    assert x.shape == (2, 3, 64, 64)
    assert x.isfinite().all()
    notes = json.loads((runs[0] / "pipeline.json").read_text())
    assert notes["name"] == "shapes-micro"
    assert notes["training"]["recipe"]["prior"]["run"]["images"] == 64
    assert pipeline.decoder.provenance["images"] == 64
    assert pipeline.clip_encoder.model.side is None
    assert pipeline.decoder.space.mean is not None


@pytest.mark.parametrize(("stage", "rows"), [("decoder", 2), ("upsampler", 3)])
def test_a_sample_grid_was_drawn_on_the_way(stage: str, rows: int, runs: tuple[Path, Said, Said]) -> None:
    with Image.open(runs[0] / "run" / stage / "samples" / "000000064.png") as sheet:
        assert sheet.width / 8 == sheet.height / rows


def test_called_again_everything_is_done(runs: tuple[Path, Said, Said]) -> None:
    files = [runs[0] / "run" / stage / f"{stage}.safetensors" for stage in STAGES]
    before = [path.stat().st_mtime_ns for path in files]
    again = train(runs[0], "shapes-micro")
    assert again.status == 0
    assert [f"{stage}: done before" in again.err for stage in STAGES] == [True] * 5
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_card_that_someone_wrote_on_outlives_a_call_that_changes_nothing(trained: Path) -> None:
    card, manifest = trained / "README.md", trained / "pipeline.json"
    card.write_text("my own words")
    before = manifest.stat().st_mtime_ns
    said = train(trained, "shapes-micro")
    assert (said.status, said.out.splitlines()[0]) == (0, str(trained))
    assert (card.read_text(), manifest.stat().st_mtime_ns) == ("my own words", before)
    (trained / "decoder.safetensors").write_bytes(b"damaged")
    assert train(trained, "shapes-micro").status == 0
    assert dalle_2.load(trained, device="cpu").decoder.config.image_size == 32
    card.write_text("my own words")
    assert train(trained, "shapes-micro", "--set", "prior.run.images=80").status == 0
    assert "| prior | 96 |" in card.read_text()  # another prior, another pipeline


def test_a_longer_run_goes_on(trained: Path) -> None:
    said = train(trained, "prior", "shapes-micro", "--set", "prior.run.images=96")
    assert said.status == 0, said.err
    assert "prior: from image 64, to 96 images" in said.err
    assert "embeddings" not in said.err  # they were finished before
    assert dalle_2.load(trained, device="cpu").prior.provenance["images"] == 96


def test_how_a_model_is_sampled_may_change_after_its_training(trained: Path) -> None:
    before = dalle_2.load(trained, device="cpu").prior
    said = train(trained, "shapes-micro", "--set", "prior.config.guidance=3.5", "--set", "prior.config.candidates=5")
    assert said.status == 0, said.err
    after = dalle_2.load(trained, device="cpu").prior
    assert (after.settings.guidance, after.config.candidates) == (3.5, 5)
    weights = before.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in after.state_dict().items())


def test_other_settings_are_refused_naming_them(trained: Path) -> None:
    said = train(trained, "prior", "shapes-micro", "--set", "prior.run.lr=0.5", "--set", "seed=3")
    assert said.status == 2
    assert "run/prior was begun with another seed, prior.run.lr: delete that folder" in said.err
    assert "Traceback" not in said.err


def test_another_clip_is_refused(trained: Path) -> None:
    said = train(trained, "shapes-micro", "--set", "clip.run.images=80")
    assert said.status == 2
    assert "trained with the CLIP you are about to change (prior, draft, decoder, upsampler): choose" in said.err


def test_a_second_upsampler_goes_on_top_of_a_finished_pipeline(trained: Path) -> None:
    lengths = ["--set", "upsampler_2.run.images=64", "--set", "upsampler_2.run.batch=16"]
    lengths += ["--set", "upsampler_2.config.unet.z_dim=0"]  # as in the paper
    said = train(trained, "shapes-1024", *SECOND, *lengths)
    assert said.status == 0, said.err
    assert all(f"{stage}: done before" in said.err for stage in STAGES)
    assert "upsampler_2: from the start, to 64 images" in said.err
    folder = trained / "run" / "upsampler_2"
    assert (folder / "upsampler_2.safetensors").exists()
    pipeline = dalle_2.load(trained, device="cpu")
    assert [one.config.image_size for one in pipeline.upsamplers] == [64, 128]
    assert pipeline.upsamplers[1].config.degradation == "bsr"
    assert [one.space is None for one in pipeline.upsamplers] == [False, True]
    assert pipeline.generate(["a red circle"], 1, seeds=1).shape == (1, 3, 128, 128)
    parts = json.loads((trained / "pipeline.json").read_text())["parts"]
    assert parts.keys() >= {"upsampler-64", "upsampler-128"}
    assert "| upsampler_2 | 64 |" in (trained / "README.md").read_text()
    again = train(trained, "upsampler_2", "shapes-1024", *SECOND, *lengths)
    assert (again.status, "upsampler_2: done before" in again.err) == (0, True)


def test_a_second_upsampler_is_a_stage_of_its_own(tmp_path: Path) -> None:
    said = train(tmp_path, "upsampler_2", "shapes-1024", *SECOND)
    assert (said.status, "the upsampler_2 needs CLIP first: run `dalle2 train clip`" in said.err) == (2, True)
    said = train(tmp_path, "upsampler_2", "shapes-micro")
    assert (said.status, "this recipe has no stage 'upsampler_2': choose among clip" in said.err) == (2, True)


def test_a_decoder_goes_on_with_a_draft_that_was_trained_longer(trained: Path) -> None:
    longer = ["shapes-micro", "--set", "draft.run.images=80"]
    before = drafts_of(trained / "run" / "decoder" / "decoder.safetensors")
    assert train(trained, "draft", *longer).status == 0
    said = train(trained, "decoder", *longer, "--set", "decoder.run.images=96")
    assert said.status == 0, said.err
    assert "decoder: from image 64, to 96 images" in said.err
    after = drafts_of(trained / "run" / "decoder" / "decoder.safetensors")
    alone = load_model(trained / "run" / "draft" / "draft.safetensors").state_dict()
    assert all(torch.equal(after[name], alone[name]) for name in alone)
    assert any(not torch.equal(after[name], before[name]) for name in alone)


def drafts_of(decoder: Path) -> dict[str, torch.Tensor]:
    return load_model(decoder, "decoder").draft.state_dict()


def test_a_decoder_does_not_go_on_with_another_draft(trained: Path) -> None:
    shutil.rmtree(trained / "run" / "draft")
    said = train(trained, "decoder", "shapes-micro")
    assert (said.status, "decoder goes on from the draft: run `dalle2 train draft`" in said.err) == (2, True)
    other = ["shapes-micro", "--set", "draft.run.lr=0.5"]
    assert train(trained, "draft", *other).status == 0
    said = train(trained, "decoder", *other)
    assert (said.status, "run/decoder was begun with another draft.run.lr" in said.err) == (2, True)


def test_a_folder_takes_one_training_at_a_time(runs: tuple[Path, Said, Said]) -> None:
    with alone(runs[0] / "run"):
        said = train(runs[0], "shapes-micro")
    assert (said.status, "another training is at work in" in said.err) == (2, True)
    assert train(runs[0], "shapes-micro").status == 0


def test_a_stage_before_its_clip_is_refused(tmp_path: Path) -> None:
    said = train(tmp_path, "decoder", "shapes-micro")
    assert said.status == 2
    assert "the decoder needs CLIP first: run `dalle2 train clip`" in said.err


def test_show_prints_the_recipe_and_trains_nothing(workdir: Path) -> None:
    said = dalle2("train", "shapes-micro", "--show", "--set", "seed=5", "--scale", "2")
    assert said.status == 0
    recipe = json.loads(said.out)
    assert (recipe["name"], recipe["seed"]) == ("shapes-micro", 5)
    assert recipe["prior"]["run"]["images"] == 2 * preset("shapes-micro").prior.run.images
    assert not list(workdir.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shape-tiny"], "no preset is called 'shape-tiny': did you mean 'shapes-tiny'"),
        (["shapes-tiny", "shapes-micro"], "one preset or TOML file, got shapes-tiny, shapes-micro"),
        (["prio", "shapes-micro"], "got prio, shapes-micro; did you mean the stage 'prior'?"),
        (["prior_ar", "shapes-micro"], "this recipe has no stage 'prior_ar': choose among clip, prior"),
        (["my-pictures"], "my-pictures learns from pictures of yours: name their folder with --data"),
        (["paper-decoder-64"], "paper-decoder-64 learns from pictures of yours: name their folder with --data"),
        (["shapes-micro", "--out", f"{__file__}/new"], "is a file: name a folder for the results"),
        (["--set", "decoder.run.image=5"], "did you mean 'images'"),
        (["--scale", "0"], "scale must be above 0"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], words: str, workdir: Path) -> None:
    said = dalle2("train", *arguments)
    assert said.status == 2
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not list(workdir.iterdir())


def test_a_trained_clip_is_taken_as_it_is(runs: tuple[Path, Said, Said], tmp_path: Path) -> None:
    said = train(tmp_path / "out", "shapes-micro", "--set", f"clip.encoder={runs[0]}", "--set", "upsampler=none")
    assert said.status == 0, said.err
    assert f"understood by {runs[0]}" in said.err
    assert "clip: from" not in said.err
    assert not (tmp_path / "out" / "run" / "clip").exists()
    assert (tmp_path / "out" / "clip.safetensors").read_bytes() == (runs[0] / "clip.safetensors").read_bytes()
    assert dalle_2.load(tmp_path / "out", device="cpu").generate(["a red circle"], seeds=0).shape == (1, 3, 32, 32)


# A folder of one's own pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve captioned pictures, one of them broken."""
    folder, shapes = tmp_path_factory.mktemp("data") / "pictures", Shapes(48, 12)
    folder.mkdir()
    for index in range(12):
        Image.fromarray(shapes[index].image).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(shapes.caption(index))
    (folder / "07.png").write_bytes(b"\x89PNG and then nothing")
    return folder


@pytest.fixture(scope="module")
def folder_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    out = tmp_path_factory.mktemp("folder") / "out"
    return out, train(out, "--data", str(pictures))


def test_a_folder_trains_to_a_pipeline(folder_run: tuple[Path, Said], pictures: Path) -> None:
    out, said = folder_run
    assert said.status == 0, said.err
    assert f"training pictures on {pictures}" in said.err
    assert "expect pictures that resemble yours" in said.err
    assert said.err.endswith("warning: 11 of 12 pictures used, 1 skipped\n  not a picture (1): 07.png\n")
    assert dalle_2.load(out, device="cpu").generate(["a red circle"], seeds=0).shape == (1, 3, 64, 64)


def test_pictures_left_out_are_named_last_even_in_silence(pictures: Path, tmp_path: Path) -> None:
    said = train(tmp_path, "clip", "--data", str(pictures), "--quiet")
    assert (said.status, said.out) == (0, "")
    assert said.err.startswith("stages done: clip; the pipeline needs the others too\nwarning: 11 of 12 pictures used")
    assert "07.png" in said.err.splitlines()[-1]
    again = train(tmp_path, "clip", "--data", str(pictures), "--quiet")
    assert "warning" not in again.err  # nothing was read


def test_a_folder_that_changed_is_not_taken_for_the_same(
    folder_run: tuple[Path, Said], pictures: Path, tmp_path: Path
) -> None:
    Path(shutil.copytree(pictures, tmp_path / "kept"))
    shutil.copytree(folder_run[0], tmp_path / "out")
    try:
        (pictures / "00.txt").write_text("something else")
        said = train(tmp_path / "out", "--data", str(pictures))
    finally:
        shutil.copy(tmp_path / "kept" / "00.txt", pictures / "00.txt")
    assert said.status == 1
    assert f"the pictures in {pictures} have changed since {tmp_path}/out/run was begun: put them" in said.err


def test_folders_that_can_not_be_used_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    said = train(tmp_path / "out", "--data", str(empty))
    assert (said.status, "holds no pictures" in said.err) == (1, True)
    said = train(tmp_path / "out", "--data", str(tmp_path / "nowhere"))
    assert (said.status, "nowhere doesn't exist: name a folder of pictures with captions" in said.err) == (1, True)
    assert said.err.count("\n") == 1  # nothing was announced
    (empty / "a.png").write_bytes(b"no picture")
    (empty / "a.txt").write_text("a caption")
    said = train(tmp_path / "out", "--data", str(empty))
    assert (said.status, "none of the 1 captioned pictures" in said.err) == (1, True)
    assert "Traceback" not in said.err
