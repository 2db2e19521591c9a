"""What a training leaves to read, and where it is kept."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from training_rig import BATCH, Pairs, assert_same_run, awake, broken, decoder, trainer, upsampler

from dalle_2 import DALLe2Trainer, DDIMSampler
from dalle_2.data.dataset import Batches
from dalle_2.errors import CheckpointError, Dalle2Error, MissingExtra, UsageError
from dalle_2.images import to_pil
from dalle_2.training import remote
from dalle_2.training.preview import sample_grid
from dalle_2.training.trainer import TrainerSettings

# What it leaves to read


def test_the_log_has_a_line_every_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, "prior", log_interval=2)
    monkeypatch.setattr(run._log, "_writer", lambda: None)
    broken(run.model, {4}, monkeypatch)
    with pytest.warns(UserWarning, match="1 of 5 steps"):
        run.fit(5 * BATCH)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [2 * BATCH, 4 * BATCH]
    assert lines[0].keys() == {"images", "loss", "grad_norm", "lr", "seconds"}
    assert lines[0]["loss"] > 0
    assert lines[1]["loss"] is None


@pytest.mark.parametrize(("kind", "own"), [("decoder", False), ("decoder", True), ("upsampler", False)])
def test_sample_grids_are_drawn_on_time(kind: str, own: bool, tmp_path: Path) -> None:
    model = decoder({"dropout": 0.3}) if kind == "decoder" else upsampler()
    modes: list[bool] = []

    def preview(shown: nn.Module) -> Image.Image:
        modes.append(shown.training)
        return Image.new("RGB", (4, 4))

    settings = TrainerSettings(dtype="fp32", preview_every=3 * BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampler = DDIMSampler(model.noise_scheduler)
    loader = Batches(Pairs(model.config.image_size), BATCH)
    run = DALLe2Trainer(
        model, kind, optimizer, None, sampler, loader, False, tmp_path, 1000,
        settings=settings, preview=preview if own else None,
    )  # fmt: skip
    run.fit(7 * BATCH)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000000024.png", "000000048.png"]
    assert modes == ([False, False] if own else [])
    assert run.model.training


def cells(sheet: Image.Image, columns: int, size: int) -> list[np.ndarray]:
    """The pictures of a sheet, row by row."""
    step = sheet.width // columns
    gap = (step - size) // 2
    corners = [(x + gap, y + gap) for y in range(0, sheet.height, step) for x in range(0, sheet.width, step)]
    return [np.asarray(sheet.crop((x, y, x + size, y + size))) for x, y in corners]


def test_a_decoders_grid_has_the_true_pictures_above_its_own() -> None:
    model, batch = awake(decoder()).eval(), Pairs(8).batch(range(10))
    shown = cells(sample_grid(model, batch), 8, 8)
    drawn = model.sample(batch["z_img"][:8], seeds=range(8))
    for found, wanted in zip(shown, [*batch["image"][:8], *drawn], strict=True):
        assert (found == np.asarray(to_pil(wanted))).all()


def test_an_upsamplers_grid_has_its_pictures_between_the_small_and_the_true_ones() -> None:
    model, batch = awake(upsampler()).eval(), Pairs(16).batch(range(3))
    shown = cells(sample_grid(model, batch), 3, 16)
    small = F.avg_pool2d(batch["image"], 2)
    drawn = model.sample(batch["z_img"], small, seeds=range(3))
    for found, wanted in zip(shown[3:], [*drawn, *batch["image"]], strict=True):
        assert (found == np.asarray(to_pil(wanted))).all()
    for found, wanted in zip(shown[:3], small, strict=True):
        mean = found.reshape(8, 2, 8, 2, 3).mean((1, 3)) / 127.5 - 1
        assert np.abs(mean - wanted.permute(1, 2, 0).numpy()).mean() < 0.1


# Storage elsewhere


def test_without_aws_nothing_of_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s3fs", "boto3", "botocore", "aiobotocore"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    monkeypatch.setattr(remote, "SAGEMAKER_CHECKPOINTS", None)
    run = trainer(tmp_path)
    run.fit(BATCH)
    assert trainer(tmp_path).resume()


def test_on_aws_a_bucket_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is_aws keeps state in a bucket: give save_dir as s3://.*, got 'runs'"):
        remote.Mirror.of("runs", is_aws=True)
    monkeypatch.setattr(remote, "SAGEMAKER_CHECKPOINTS", tmp_path)
    assert remote.Mirror.of("runs", is_aws=True) == remote.Mirror(tmp_path / "runs")
    with pytest.raises(UsageError, match="got '/elsewhere'"):
        remote.Mirror.of("/elsewhere", is_aws=True)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_run_at_a_url_goes_on_with_an_empty_disk(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://{tmp_path}/bucket/run"
    for images in (BATCH, 2 * BATCH):
        run = trainer(url)
        assert run.resume() == (images > BATCH)
        run.fit(images)
        assert not run.save_dir.is_relative_to(tmp_path)
    whole = trainer(tmp_path / "whole")
    whole.fit(2 * BATCH)
    assert_same_run(whole, run)
    files, root = run._mirror._place()
    assert len(files.glob(f"{root}/state-*.pth")) == 1


def test_an_upload_that_breaks_off_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    url = "memory://broken/run"
    run = trainer(url)
    run.fit(BATCH)

    def taken_away(*_: object, **__: object) -> None:
        raise OSError("connection lost")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", taken_away)
    with pytest.raises(Dalle2Error, match=r"can't copy the state to memory://broken/run \(connection lost\): it lies"):
        run.fit(2 * BATCH)
    monkeypatch.undo()
    again = trainer(url)
    assert again.resume()
    assert again.images == BATCH
    shutil.rmtree(run.save_dir)  # what can't be copied is kept


def test_a_committed_state_that_is_gone_is_an_error(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/gone"
    trainer(url).fit(BATCH)
    next((tmp_path / "gone").glob("state-*.pth")).unlink()
    with pytest.raises(CheckpointError, match="the state at file://.* can't be fetched .*: delete COMMITTED there"):
        trainer(url).resume()


@pytest.mark.parametrize("url", ["file:///proc/nowhere/run", "nonsense://bucket/run"])
def test_a_place_that_can_not_be_written_is_refused_before_the_first_step(url: str) -> None:
    with pytest.raises(Dalle2Error, match=rf"can't write to {url}: .*; check the address and your credentials"):
        trainer(url)


def test_a_bucket_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"keeping state at s3://bucket/run needs s3fs.*dalle_2\[s3\]"):
        trainer("s3://bucket/run")


# What a run elsewhere leaves on this machine


def test_the_folder_of_a_run_elsewhere_goes_with_its_trainer(tmp_path: Path) -> None:
    run = trainer(f"file://{tmp_path}/bucket/run")
    run.fit(BATCH)
    folder = run.save_dir
    assert (folder / "state.pth").exists()
    del run
    gc.collect()
    assert not folder.exists()
    assert (tmp_path / "bucket" / "run" / remote.MARKER).exists()


def test_the_folder_of_a_run_elsewhere_goes_with_the_process() -> None:
    code = "from dalle_2.training.remote import Mirror; m = Mirror.of('memory://run', is_aws=False); print(m.folder)"
    done = subprocess.run([sys.executable, "-c", code + "; (m.folder / 'x').touch()"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.name.startswith("dalle2-")
    assert not folder.exists()


def test_a_state_that_could_not_be_copied_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says where it lies, and is the only thing left of the run."""
    run = trainer("memory://kept/run")
    run.fit(BATCH)
    folder = run.save_dir

    def taken_away(*_: object) -> None:
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(remote.Mirror, "_place", taken_away)
        with pytest.raises(Dalle2Error, match=f"it lies whole in {folder}"):
            run.save()
    del run
    gc.collect()
    assert (folder / "state.pth").exists()
    shutil.rmtree(folder)


def test_a_place_that_was_refused_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Dalle2Error, match="can't write to nonsense://run"):
        remote.Mirror.of("nonsense://run", is_aws=False)
    gc.collect()
    assert not list(tmp_path.iterdir())
