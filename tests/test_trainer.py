"""The training loop: its arithmetic, its memory across kills and damaged files, and what it refuses."""

import errno
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from training_rig import BATCH, MODELS, ROWS, Pairs, clip, decoder, prior, train_on, trainer

from dalle_2 import DALLe2Trainer, DDIMSampler, NoiseScheduler
from dalle_2.config import parse
from dalle_2.data.dataset import Batches
from dalle_2.errors import CheckpointError, ConfigError, Dalle2Error, DataError, MissingExtra, UsageError
from dalle_2.training import remote, state
from dalle_2.training.ema import EMA
from dalle_2.training.lr_schedule import LRSchedule
from dalle_2.training.trainer import TrainerSettings, micro_batches


def user_batch(kind: str, rows: int = 6) -> dict[str, torch.Tensor]:
    """A noised batch with exactly the names of the user's list."""
    names = {"prior": ("z_t", "z_txt", "t", "eps"), "decoder": ("x_t", "z_img", "t", "x_0")}[kind]
    noised = MODELS[kind]().noised(Pairs().batch(range(rows)), torch.Generator().manual_seed(0))
    return {name: noised[name] for name in names}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, through nested containers."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def assert_same_run(a: DALLe2Trainer, b: DALLe2Trainer) -> None:
    assert_same(a._state() | {"seconds": 0}, b._state() | {"seconds": 0})


def all_finite(values: Any) -> bool:
    if isinstance(values, dict):
        return all(map(all_finite, values.values()))
    return not isinstance(values, torch.Tensor) or bool(values.isfinite().all())


# The user's calls


@pytest.mark.parametrize("kind", ["prior", "decoder"])
def test_the_users_constructor_and_one_step(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = model.noise_scheduler
    run = DALLe2Trainer(model, kind, optimizer, scheduler, DDIMSampler(scheduler), [], False, str(tmp_path), 10)
    before = weights(model)
    loss = run.train_step(user_batch(kind))
    assert isinstance(loss, float)
    assert math.isfinite(loss)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("kind", "first"), [("prior", 1.0), ("decoder", None)])
def test_the_loss_is_the_mean_squared_error(kind: str, first: float | None, tmp_path: Path) -> None:
    """A new network answers zero, so the first loss is the mean square of what it should have said."""
    batch = user_batch(kind, ROWS)
    wanted = batch["eps" if kind == "prior" else "x_0"]
    loss = trainer(tmp_path, kind).train_step(batch)
    assert loss == pytest.approx(float(wanted.square().mean()), rel=1e-5)


def test_a_plain_dataloader_gives_epochs(tmp_path: Path) -> None:
    run = trainer(tmp_path, dataloader=DataLoader(Pairs(), batch_size=BATCH, shuffle=True))
    run.train(2)
    assert (run.images, run.steps) == (2 * ROWS, 2 * 4)
    again = trainer(tmp_path, dataloader=DataLoader(Pairs(), batch_size=BATCH, shuffle=True))
    assert again.resume()
    again.train(2)
    assert again.steps == 8
    again.train_one_epoch(2)
    assert again.steps == 12


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_dataloader_goes_on_in_the_middle_of_a_pass(drop_last: bool, tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(Pairs(), batch_size=BATCH, shuffle=True, drop_last=drop_last)

    whole = trainer(tmp_path / "whole", dataloader=loader())
    whole.train(3)
    trainer(tmp_path / "parts", dataloader=loader()).fit(5 * BATCH)
    parts = trainer(tmp_path / "parts", dataloader=loader())
    parts.resume()
    parts.train(3)
    assert_same_run(whole, parts)


def test_a_list_of_batches_is_a_dataloader(tmp_path: Path) -> None:
    batches = [Pairs().batch(range(start, start + 5)) for start in (0, 5, 10)]
    trainer(tmp_path, dataloader=batches).train(2)
    run = trainer(tmp_path, dataloader=batches)
    run.resume()
    assert run._passes_done() == 2
    run.train(3)
    assert (run.images, run.steps) == (45, 9)


class Stream(IterableDataset[Any]):
    """Three batches of five rows, without a length."""

    def __iter__(self) -> Any:
        return (Pairs().batch(range(start, start + 5)) for start in (0, 5, 10))


def test_a_dataloader_without_a_length_begins_anew(tmp_path: Path) -> None:
    run = trainer(tmp_path, dataloader=DataLoader(Stream(), batch_size=None))
    run.train(2)
    assert run.images == 30
    again = trainer(tmp_path, dataloader=DataLoader(Stream(), batch_size=None))
    again.resume()
    again.fit(50)
    assert again.images == 50
    with pytest.raises(UsageError, match=r"without a length can't be counted on: call fit\(images\) instead"):
        again.train(9)


def test_steps_of_the_callers_own_are_no_part_of_a_pass(tmp_path: Path) -> None:
    run = trainer(tmp_path, dataloader=DataLoader(Pairs(), batch_size=BATCH))
    run.train_step(user_batch("prior"))
    run.train(1)
    assert run.images == 6 + ROWS


def test_epochs_of_endless_batches_are_counted_in_images(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train(2)
    assert run.images == 64  # the first multiple of the batch at or behind two passes of 30
    again = trainer(tmp_path)
    again.resume()
    again.train(2)
    assert again.images == 64


# Arithmetic of a step


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulating_equals_one_batch(parts: int, tmp_path: Path) -> None:
    models = [prior(), prior()]
    batch = user_batch("prior", 7)
    for model, accumulate in zip(models, (1, parts), strict=True):
        settings = TrainerSettings(dtype="fp32", accumulate=accumulate, clip_norm=None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = DALLe2Trainer(model, "prior", optimizer, save_dir=tmp_path, settings=settings)
        losses = [run.train_step(batch) for _ in range(3)]
    for whole, pieces in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(whole, pieces, atol=1e-6)
    assert losses[0] > losses[-1]


def test_micro_batches_cover_every_row_once() -> None:
    parts = list(micro_batches({"x": torch.arange(7)}, 3))
    assert torch.cat([part["x"] for part, _ in parts]).tolist() == list(range(7))
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert len(list(micro_batches({"x": torch.arange(2)}, 5))) == 2


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    model = prior()
    before = [p.detach().clone() for p in model.parameters()]
    settings = TrainerSettings(dtype="fp32", clip_norm=1e-3)
    run = DALLe2Trainer(
        model, "prior", torch.optim.SGD(model.parameters(), lr=1.0), save_dir=tmp_path, settings=settings
    )
    run.train_step(user_batch("prior"))
    pairs = zip(model.parameters(), before, strict=True)
    moved = math.sqrt(sum(float((after.detach() - b).square().sum()) for after, b in pairs))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_rises_and_falls() -> None:
    schedule = LRSchedule(warmup=10, total=110, final=0.1)
    assert [schedule.factor(k) for k in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.factor(10) == 1
    assert schedule.factor(60) == pytest.approx(0.55)
    assert schedule.factor(35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert [schedule.factor(k) for k in (110, 10**9)] == pytest.approx([0.1, 0.1])
    assert LRSchedule(warmup=0).factor(10**9) == 1
    with pytest.raises(ConfigError, match="warmup 5 must be shorter than the whole run of 5 images"):
        parse(LRSchedule, {"warmup": 5, "total": 5})


def test_every_group_keeps_its_own_rate_across_a_resume(tmp_path: Path) -> None:
    def grouped() -> DALLe2Trainer:
        model = prior()
        first, *others = model.parameters()
        optimizer = torch.optim.SGD([{"params": [first], "lr": 0.4}, {"params": others, "lr": 0.2}], lr=0.1)
        settings = TrainerSettings(dtype="fp32", lr_schedule=LRSchedule(warmup=10, total=1000))
        loader = Batches(Pairs(), 5)
        return DALLe2Trainer(model, "prior", optimizer, dataloader=loader, save_dir=tmp_path, settings=settings)

    grouped().fit(5)
    run = grouped()
    run.resume()
    run.fit(10)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.4 * 0.6, 0.2 * 0.6])


def test_the_average_follows_its_formula() -> None:
    source = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        source.weight.fill_(0.0)
    average, expected = EMA(source, halflife=4.0), 0.0
    for step in range(1, 30):
        with torch.no_grad():
            source.weight.fill_(float(step))
        average.update(source, images=2 * step, batch=2)
        halflife = min(4.0, 2 * step / 10)
        expected += (step - expected) * (1 - 0.5 ** (2 / halflife))
    assert float(average.model.weight) == pytest.approx(expected, rel=1e-5)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_the_trainer_averages_and_gives_the_average(tmp_path: Path) -> None:
    run = trainer(tmp_path, "clip")
    run.fit(4 * BATCH)
    assert run.best_model is run.ema.model
    assert not torch.equal(next(run.best_model.parameters()), next(run.model.parameters()))
    for average, value in zip(run.best_model.buffers(), run.model.buffers(), strict=True):
        assert torch.equal(average, value)
    assert trainer(tmp_path, ema_halflife=None).best_model is not None


GOLDEN = {
    "prior": [1.16435, 1.0331, 0.79215, 0.74544, 1.06026],
    "decoder": [0.32559, 0.32423, 0.33589, 0.30993, 0.32467],
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_first_losses_are_those_of_the_past(kind: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, kind, log_interval=1)
    values: list[float] = []
    run._log.write = lambda images, logged: values.append(logged["loss"])  # type: ignore[method-assign]
    run.fit(5 * BATCH)
    assert values == pytest.approx(GOLDEN[kind], abs=1e-4)


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
    assert process.exitcode == 130
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


# Numbers that are not finite


def broken(model: nn.Module, at: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loss NaN in some calls."""
    loss, calls = model.loss, []

    def sometimes(batch: Any) -> Any:
        calls.append(None)
        parts = loss(batch)
        return parts | {"loss": parts["loss"] * (math.nan if len(calls) in at else 1.0)}

    monkeypatch.setattr(model, "loss", sometimes)


def test_a_nan_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    broken(run.model, {3, 4}, monkeypatch)
    run.fit(2 * BATCH)
    before = weights(run.model), weights(run.best_model)
    run.fit(4 * BATCH)
    assert (run.skipped, run.images) == (2, 4 * BATCH)
    assert_same(before, (weights(run.model), weights(run.best_model)))
    run.fit(5 * BATCH)
    assert run.skipped == 0
    assert all_finite(state.load_state(tmp_path))


def test_a_broken_picture_leaves_no_trace_in_running_statistics(tmp_path: Path) -> None:
    run = trainer(tmp_path, "clip")
    run.fit(2 * BATCH)
    before = weights(run.model)
    assert any("running_mean" in name for name in before)
    batch = Pairs().batch(range(BATCH))
    batch["image"][0] = math.nan
    assert math.isnan(run.train_step(batch))
    assert_same(before, weights(run.model))
    run.save()
    assert all_finite(state.load_state(tmp_path))


def test_more_than_ten_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, save_every=1e-9)
    broken(run.model, set(range(3, 100)), monkeypatch)
    with pytest.raises(Dalle2Error, match=r"the loss of 11 steps in a row was not finite after 96 images: lower"):
        run.fit(100 * BATCH)
    assert all_finite(state.load_state(tmp_path))


# Refusals


def test_another_noise_table_is_refused_naming_both(tmp_path: Path) -> None:
    model, other = prior(), NoiseScheduler(100, schedule="linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for given in ((other, None), (None, DDIMSampler(other))):
        with pytest.raises(UsageError, match=r"linear, T = 100.*cosine, T = 50"):
            DALLe2Trainer(model, "prior", optimizer, *given, [], False, tmp_path)


@pytest.mark.parametrize(
    ("kind", "words"), [("priors", "choose one of clip, prior"), ("decoder", "the model is a prior: say 'prior'")]
)
def test_a_wrong_model_type_is_refused(kind: str, words: str, tmp_path: Path) -> None:
    model = prior()
    with pytest.raises(UsageError, match=words):
        DALLe2Trainer(model, kind, torch.optim.SGD(model.parameters(), lr=0.1), save_dir=tmp_path)


def test_a_model_without_a_loss_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(UsageError, match="a Linear can't be trained: it needs the methods `noised` and `loss`"):
        DALLe2Trainer(model, "prior", torch.optim.SGD(model.parameters(), lr=0.1), save_dir=tmp_path)


@pytest.mark.parametrize(
    "settings", [{"accumulate": 0}, {"clip_norm": 0.0}, {"save_every": 0.0}, {"seed": -1}, {"ema_halflife": -1.0}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(settings))}.*{next(iter(settings.values()))}"):
        trainer(tmp_path, **settings)


def test_clip_does_not_accumulate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CLIP can't accumulate.*set accumulate = 1"):
        trainer(tmp_path, "clip", accumulate=2)


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


def test_batches_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch must be a dict of tensors, got a list"):
        trainer(tmp_path, dataloader=[[torch.zeros(1)]]).fit(1)
    with pytest.raises(UsageError, match="the batch lacks z_img; it holds z_txt"):
        trainer(tmp_path, dataloader=[{"z_txt": torch.zeros(1, 8)}]).fit(1)
    with pytest.raises(UsageError, match="the batch lacks z_t"):
        trainer(tmp_path).train_step({"z_txt": torch.zeros(1, 8), "t": torch.zeros(1)})
    with pytest.raises(DataError, match="the dataloader ended after 0 images"):
        trainer(tmp_path, dataloader=[]).fit(1)
    with pytest.raises(UsageError, match="log_interval must be at least 1 step, got 0"):
        trainer(tmp_path, log_interval=0)


def test_a_trainer_without_data_says_so(tmp_path: Path) -> None:
    model = prior()
    run = DALLe2Trainer(model, "prior", torch.optim.SGD(model.parameters(), lr=0.1), save_dir=tmp_path)
    for call in (lambda: run.fit(1), lambda: run.train(1)):
        with pytest.raises(UsageError, match="this trainer has no dataloader"):
            call()


# What it leaves to read


def test_the_log_has_a_line_every_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, "prior", log_interval=2)
    monkeypatch.setattr(run._log, "_writer", lambda: None)
    broken(run.model, {4}, monkeypatch)
    run.fit(5 * BATCH)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [2 * BATCH, 4 * BATCH]
    assert lines[0].keys() == {"images", "loss", "grad_norm", "seconds"}
    assert lines[0]["loss"] > 0
    assert lines[1]["loss"] is None


@pytest.mark.parametrize("own", [False, True])
def test_sample_grids_are_drawn_on_time(own: bool, tmp_path: Path) -> None:
    from PIL import Image

    model = decoder({"dropout": 0.3})
    modes: list[bool] = []

    def preview(shown: nn.Module) -> Image.Image:
        modes.append(shown.training)
        return Image.new("RGB", (4, 4))

    settings = TrainerSettings(dtype="fp32", preview_every=3 * BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampler = DDIMSampler(model.noise_scheduler)
    loader = Batches(Pairs(), BATCH)
    run = DALLe2Trainer(
        model, "decoder", optimizer, None, sampler, loader, False, tmp_path, 1000,
        settings=settings, preview=preview if own else None,
    )  # fmt: skip
    run.fit(7 * BATCH)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000000024.png", "000000048.png"]
    assert modes == ([False, False] if own else [])
    assert run.model.training


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


def test_the_rig_is_what_it_says() -> None:
    assert all(model().kind == kind for kind, model in MODELS.items())
    assert clip().side is not None
