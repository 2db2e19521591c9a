"""What a person is told while something trains, how it is stopped, and what killed processes leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_train_cli import Said, dalle2, minuscule, train
from training_rig import Pairs, decoder, prior

from dalle_2 import DALLe2, save
from dalle_2.cached import home
from dalle_2.cli.main import main
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import UsageError
from dalle_2.hub import _forget_cut_off
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.paths import atomic_path, clear_leftovers
from dalle_2.presets import preset
from dalle_2.training.dry_run import dry_run, rough_cost
from dalle_2.training.here import made_up
from dalle_2.training.interrupt import Terminated
from dalle_2.training.outlook import WHAT, Outlook, Placed
from dalle_2.training.progress import Lines, Report, Silent
from dalle_2.training.small_pictures import small_pictures
from dalle_2.training.stages import STAGES

# What is said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The first two stages of a tiny recipe."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    return folder, train(folder, "clip", "prior", "shapes-micro")


def test_it_says_which_stage_of_how_many_and_where_things_lie(run: tuple[Path, Said]) -> None:
    folder, said = run
    lines = said.err.splitlines()
    assert f"of each stage, {folder}/run/STAGE holds log.jsonl and, of some, samples" in lines
    for number, stage in ((1, "clip"), (2, "prior")):
        start = lines.index(f"stage {number} of 5: {WHAT[stage]}; log and samples in {folder}/run/{stage}")
        assert lines[start + 1].startswith(f"{stage}: from the start")
        assert (folder / "run" / stage / "log.jsonl").exists() or preset("shapes-micro").prior.run.log_interval > 2
    assert WHAT.keys() == {*STAGES}


def test_it_explains_its_short_names(run: tuple[Path, Said]) -> None:
    [line] = [line for line in run[1].err.splitlines() if line.startswith("images are those seen")]
    assert all(name in line for name in ("loss", "grad_norm", "lr", "accuracy", "contrastive"))


@pytest.mark.parametrize("by_name", [False, True])
def test_generate_says_that_a_run_is_not_finished(
    by_name: bool, run: tuple[Path, Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained_models").mkdir()
    (tmp_path / "trained_models" / "mine").symlink_to(run[0])
    named = "mine" if by_name else "trained_models/mine"
    said = dalle2("generate", "a red circle", "--pipeline", named)
    assert (said.status, said.out) == (1, "")
    assert (
        "trained_models/mine is not finished, its training has come to stage 3 of 5 (draft): run the same" in said.err
    )


def test_the_time_to_the_end_counts_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    outlook = Outlook(("clip", "prior", "decoder"), {"clip": 100.0, "prior": 50.0, "decoder": 400.0})
    assert outlook.seconds_left() is None
    outlook.advance("clip", 0.5, None)
    assert outlook.seconds_left() is None
    outlook.advance("clip", 0.5, 10.0)  # a tenth of a second a unit
    assert outlook.seconds_left() == pytest.approx(5 + 5 + 40)
    outlook.advance("clip", 1.0, 10.0)
    outlook.advance("prior", 0.0, 15.0)  # three tenths: the decoder is taken to go at their mean
    assert outlook.seconds_left() == pytest.approx(0 + 15 + 400 * 0.2)
    outlook.aside = ("prior",)
    assert outlook.seconds_left() == pytest.approx(80)  # beside it


def test_a_rate_that_is_measured_becomes_a_sum(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock, heard = [0.0], []
    monkeypatch.setattr("dalle_2.training.outlook.time.monotonic", lambda: clock[0])
    silent = Silent()
    silent.step = heard.append  # type: ignore[method-assign]
    placed = Placed(silent, Outlook(("clip", "prior"), {"clip": 10.0, "prior": 30.0}), lambda line: None, "run")
    placed.start("clip", 0, 1000)
    for step in range(1, 31):
        clock[0] += 5.0 if step < 10 else 2.0  # ten images in two seconds, once it is warm
        placed.step(Report(10 * step, 10, {"loss": 1.0}))
    assert heard[0].left is None
    assert heard[-1].left == pytest.approx(700 * 0.2 + 3 * 1000 * 0.2)
    lines = Lines(every=0.0)
    lines.start("clip", 0, 1000)
    lines.step(Report(300, 10, {"loss": 0.5, "lr": 3e-5}, left=740.0))
    said = capsys.readouterr().err
    assert "about 12 min to the end of all stages" in said
    assert "lr 3e-05" in said


@pytest.mark.parametrize("stage", preset("shapes-tiny").stages)
def test_the_rough_cost_is_nearly_the_counted_one(stage: str) -> None:
    recipe = preset("shapes-tiny")
    counted = dry_run(recipe, stage)
    assert rough_cost(recipe, stage) == pytest.approx(counted.flops * counted.run.images, rel=0.35)


def test_a_dry_run_tries_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "prior", "shapes-micro", "--dry-run", "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("on this machine (")
    assert "by 2 steps of each, about: prior " in said
    assert main(["train", "paper-upsampler-1024", "--dry-run", "--device", "cpu"]) == 0
    assert "paper-upsampler-1024: too large to be tried here" in capsys.readouterr().out


def test_made_up_pairs_are_what_a_model_learns_from() -> None:
    for model in (prior(), decoder()):
        noised = model.noised(made_up(model, 3), torch.Generator().manual_seed(0))
        assert model.loss(noised)["loss"].isfinite()


def test_small_pictures_are_mentioned(tmp_path: Path) -> None:
    for index, side in enumerate((300, 100, 64, 400)):
        Image.new("RGB", (side, 2 * side)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("a picture")
    recipe, dataset = preset("shapes-micro"), ImageFolder(tmp_path)
    size = recipe.upsampler.config.image_size
    small = sum(side < size for side in (300, 100, 64, 400))
    said = small_pictures(recipe, dataset)
    assert said is not None
    assert said.startswith(f"{small} of 4 pictures are smaller than the {size} px that the upsampler learns to draw")
    assert "down to 64 px" in said
    assert small_pictures(recipe.model_copy(update={"upsampler": None}), dataset) is None


# How it is stopped


def started(folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dalle_2", "train", "shapes-micro", "--out", str(folder), "--device", "cpu"]
    more = ["--set", "clip.run.images=10000000", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *minuscule("clip"), *tiny_clip(), *more], stderr=subprocess.PIPE, text=True, env=environment
    )


def tiny_clip() -> list[str]:
    words = minuscule()
    pairs = [word for word in words if word.startswith("clip") and "run.images" not in word]
    return [word for pair in pairs for word in ("--set", pair)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stopped_training_says_that_its_state_is_saved(number: int, status: int, tmp_path: Path) -> None:
    process = started(tmp_path / "out")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("clip: from the start"):
            break
    time.sleep(0.5)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    last = [line for line in said.splitlines() if line != "dalle2: interrupted"][-1]
    kept = f"the state is saved in {tmp_path}/out/run, and the same command goes on from there"
    assert last == f"stopped at clip, not finished: {kept}"
    assert (tmp_path / "out" / "run" / "clip" / "state.pth").exists()
    assert not list((tmp_path / "out").rglob(".*.pth"))


def test_elsewhere_sigterm_is_143_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def killed() -> None:
        with atomic_path(tmp_path / "x.png") as path:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr("dalle_2.cli.show.show", killed)
    assert main(["show"]) == 143
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stop_between_the_loops_is_no_saved_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Terminated(143)

    monkeypatch.setattr("dalle_2.training.train.Training._train", killed)
    said = train(tmp_path / "out", "shapes-micro")
    assert said.status == 0
    assert f"stopped, not finished: what was saved last is kept in {tmp_path}/out/run, and the same" in said.err
    assert train(tmp_path / "out", "shapes-micro", "--stop-status", "143").status == 143


# What killed processes leave


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    gone, alive, before = dead(), os.getppid(), os.getpid()
    names = {
        f".state.{gone}-0123abcd.pth": False, f".x.y.{gone}-0123abcd.png": False, f".{'n' * 30}.{gone}-0123abcd": False,
        f".state.{alive}-0123abcd.pth": True, f".state.{before}-0123abcd.pth": True, ".state.png": True,
        f"state.{gone}-0123abcd.pth": True, ".gitignore": True,
    }  # fmt: skip
    for name in names:
        (tmp_path / "run" / name).touch()
    saving = tmp_path / f".saving-{gone}-abc_12"
    saving.mkdir()
    (saving / "half").touch()
    earlier = tmp_path / "run" / f".mine.{before}-0123abcd.pth"  # in a container a process may have the same number
    earlier.touch()
    os.utime(earlier, (0, 0))
    clear_leftovers(tmp_path)
    assert {name: (tmp_path / "run" / name).exists() for name in names} == names
    assert not saving.exists()
    assert not earlier.exists()


def test_the_next_file_that_is_written_clears_its_folder_after_a_while(tmp_path: Path) -> None:
    """Not at once: in a folder that machines share, a process that isn't found here may be at work on another."""
    left, late = (tmp_path / f".{name}.{dead()}-0123abcd.png" for name in ("picture", "late"))
    reused = tmp_path / f".state.{os.getppid()}-0123abcd.png"
    for path, age in ((left, 700), (late, 30), (reused, 90_000)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    with atomic_path(tmp_path / "other.json") as path:
        path.write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"other.json", late.name}


def test_cut_off_downloads_that_nobody_goes_on_with_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blobs = home("owner/name") / "blobs"
    blobs.mkdir(parents=True)
    for name in ("old.incomplete", "new.incomplete", "whole"):
        (blobs / name).touch()
    os.utime(blobs / "old.incomplete", (0, 0))
    os.utime(blobs / "whole", (0, 0))
    _forget_cut_off("owner/name")
    assert sorted(path.name for path in blobs.iterdir()) == ["new.incomplete", "whole"]


# Parts that fit


def test_a_pipeline_of_parts_that_do_not_fit_is_not_written(tmp_path: Path) -> None:
    from test_callers_wrappers import tiny_encoder

    good = DALLe2(prior(), decoder(), tiny_encoder(), device="cpu")
    save(good, tmp_path / "good")
    wide = prior(dim=16)
    raw = decoder(space=EmbeddingSpace(dim=8, normalised=False).model_dump())
    for parts in ((wide, decoder()), (prior(), raw)):
        with pytest.raises(UsageError, match="use parts that were made for the same CLIP"):
            save(DALLe2(*parts, tiny_encoder(), device="cpu"), tmp_path / "bad")
        assert not (tmp_path / "bad").exists()
    with pytest.raises(UsageError, match="use parts that were made for the same CLIP"):
        save(DALLe2(prior(), decoder(), tiny_encoder(), device="cpu", alternatives={"decoder-inpaint": raw}), tmp_path)
    assert json.loads((tmp_path / "good" / "pipeline.json").read_text())["name"] == "good"
    assert len(Pairs()) > 0
