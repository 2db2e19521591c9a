"""The training loop's memory, across kills, damaged files and full disks."""

import errno
import multiprocessing
import os
import random
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_rig import BATCH, MODELS, Pairs, assert_same_run, prior, train_on, trainer

from dalle_2.data.dataset import Batches
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.training import state
from dalle_2.training.lr_schedule import LRSchedule

# Going on


@pytest.mark.parametrize("kind", MODELS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    def loader(prefetch: int) -> Batches:
        return Batches(Pairs(16 if kind == "upsampler" else 8), BATCH, seed=2, prefetch=prefetch)

    schedule = {"lr_schedule": LRSchedule(warmup=16, total=80)}
    whole = trainer(tmp_path / "whole", kind, dataloader=loader(0), **schedule)
    whole.fit(64)
    for images in (16, 40):
        part = trainer(tmp_path / "parts", kind, dataloader=loader(2), **schedule)
        part.resume()
        part.fit(images)
        torch.rand(images)  # whatever else a process draws has no part in it
    part = trainer(tmp_path / "parts", kind, dataloader=loader(0), **schedule)
    assert part.resume()
    assert part.images == 40
    part.fit(64)
    assert_same_run(whole, part)


def test_dropout_and_noise_differ_from_step_to_step(tmp_path: Path) -> None:
    """The equality above would also hold if every step drew the same numbers."""
    run = trainer(tmp_path, "decoder")
    first, second = run._generator(), run._generator()
    assert torch.equal(torch.randn(4, generator=first), torch.randn(4, generator=second))
    dropout = torch.rand(4)
    run.images += BATCH
    assert not torch.equal(torch.randn(4, generator=run._generator()), torch.randn(4, generator=first))
    assert not torch.equal(torch.rand(4), dropout)


def test_a_seed_of_any_size_is_taken(tmp_path: Path) -> None:
    trainer(tmp_path, seed=2**63).fit(BATCH)


@pytest.fixture(scope="module")
def fork() -> Any:
    """Starts `train_on` in a process that has torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_rig"])

    def start(folder: Path, images: int, save_every: float) -> Any:
        process = context.Process(target=train_on, args=(str(folder), images, save_every), daemon=True)
        process.start()
        return process

    return start


def wait_for(path: Path, process: Any) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.is_alive(), "the training ended before it saved anything"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(fork: Any, tmp_path: Path) -> None:
    images, chance, reached = 100 * BATCH, random.Random(4), []
    for _ in range(3):
        process = fork(tmp_path / "killed", images, 1e-9)  # saves at every step, so most kills hit a save
        wait_for(tmp_path / "killed" / state.STATE, process)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        reached.append(state.load_state(tmp_path / "killed")["images"])
    assert reached == sorted(reached)
    assert reached[0] < images
    killed = trainer(tmp_path / "killed")
    killed.resume()
    killed.fit(images)
    whole = trainer(tmp_path / "whole")
    whole.fit(images)
    assert_same_run(whole, killed)


def test_sigterm_saves_and_ends(fork: Any, tmp_path: Path) -> None:
    process = fork(tmp_path, 10**9, 1e6)
    wait_for(tmp_path / "started", process)
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    saved = state.load_state(tmp_path)
    assert saved["images"] == saved["steps"] * BATCH > 0


# The state on the disk


@pytest.fixture
def saved_twice(tmp_path: Path) -> Path:
    run = trainer(tmp_path)
    run.fit(BATCH)
    run.fit(2 * BATCH)
    return tmp_path


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone", "digest"])
def test_a_damaged_state_falls_back_to_the_one_before(damage: str, saved_twice: Path) -> None:
    path = saved_twice / state.STATE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    elif damage == "digest":
        path.with_suffix(".json").write_text("{")
    else:
        path.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    run = trainer(saved_twice)
    assert run.resume()
    assert run.images == BATCH
    run.fit(2 * BATCH)
    whole = trainer(saved_twice / "whole")
    whole.fit(2 * BATCH)
    assert_same_run(whole, run)


def test_two_damaged_states_are_one_sentence(saved_twice: Path) -> None:
    for name in (state.STATE, state.PREVIOUS):
        (saved_twice / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"is whole: delete state.pth and state-previous.pth there"):
        trainer(saved_twice).resume()


def test_a_kill_between_the_moves_loses_nothing(saved_twice: Path) -> None:
    """`save_state` moves two files, then writes a third; here it got no further than the first."""
    os.replace(saved_twice / state.STATE, saved_twice / state.PREVIOUS)
    assert state.load_state(saved_twice)["images"] == 2 * BATCH


def test_a_damaged_state_never_replaces_a_whole_one(saved_twice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved_twice / state.STATE).write_bytes(b"half")
    run = trainer(saved_twice)
    run.resume()
    monkeypatch.setattr(state, "atomic_write_text", fails_with_full_disk)
    with pytest.raises(OSError, match="No space left"):
        run.save()
    assert state.load_state(saved_twice)["images"] == BATCH


def fails_with_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_state(saved_twice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(values: object, file: Any) -> None:
        file.write(b"half")
        fails_with_full_disk()

    run = trainer(saved_twice)
    run.resume()
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match=r"No space left on device: '.*state.pth'"):
        run.fit(3 * BATCH)
    monkeypatch.undo()
    assert sorted(path.name for path in saved_twice.glob("*.pth")) == [state.PREVIOUS, state.STATE]
    assert not list(saved_twice.glob(".*"))
    again = trainer(saved_twice)
    again.resume()
    assert again.images == 2 * BATCH


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_really_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full(target: Path) -> Any:
        yield Path("/dev/full")

    monkeypatch.setattr(state, "atomic_path", full)
    with pytest.raises(OSError, match="No space left"):
        state.save_state(tmp_path, {"x": torch.zeros(10**5)})


def test_a_state_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FORMAT", 2)
    state.save_state(tmp_path, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has another format than 1: continue it with the version that wrote it"):
        state.load_state(tmp_path)


def test_the_folder_of_another_run_is_refused(saved_twice: Path) -> None:
    with pytest.raises(UsageError, match="the run of a prior with seed 0, not of a prior with seed 1: choose another"):
        trainer(saved_twice, seed=1).resume()
    with pytest.raises(UsageError, match="not of a decoder with seed 0"):
        trainer(saved_twice, "decoder").resume()
    with pytest.raises(UsageError, match="differs in whether it averages its weights"):
        trainer(saved_twice, ema_halflife=None).resume()
    with pytest.raises(CheckpointError, match="don't fit Prior: of another shape"):
        trainer(saved_twice, model=prior(width=32)).resume()
    wide = trainer(saved_twice)
    wide.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(CheckpointError, match="the optimiser's state in .* doesn't fit this one"):
        wide.resume()
