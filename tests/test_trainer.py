"""The training loop: the user's calls, the arithmetic of a step, and numbers that are not finite."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from training_rig import (
    BATCH,
    MODELS,
    ROWS,
    Pairs,
    all_finite,
    assert_same,
    assert_same_run,
    awake,
    broken,
    clip,
    decoder,
    prior,
    trainer,
    user_batch,
    weights,
)

from dalle_2 import DALLe2Trainer, DDIMSampler
from dalle_2.config import parse
from dalle_2.data.dataset import Batches
from dalle_2.errors import ConfigError, Dalle2Error, UsageError
from dalle_2.training import state
from dalle_2.training.ema import EMA
from dalle_2.training.lr_schedule import LRSchedule
from dalle_2.training.trainer import TrainerSettings, micro_batches

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


def test_a_step_of_the_callers_own_trains_with_dropout(tmp_path: Path) -> None:
    """A model fresh from a file, or one that has just drawn, is in evaluation mode."""
    batch, losses = user_batch("decoder"), []
    for share in (0.0, 0.9):
        model = awake(decoder({"dropout": share})).eval()
        run = trainer(tmp_path, "decoder", model=model)
        losses.append(run.train_step(batch))
        assert model.training
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("kind", "first"), [("prior", 1.0), ("decoder", None)])
def test_the_loss_is_the_mean_squared_error(kind: str, first: float | None, tmp_path: Path) -> None:
    """A new network answers zero, so the first loss is the mean square of what it should have said."""
    batch = user_batch(kind, ROWS)
    wanted = batch["eps" if kind == "prior" else "x_0"]
    loss = trainer(tmp_path, kind, model=MODELS[kind](sigma_data=None)).train_step(batch)
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
    assert run.passes.done == 2
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
    said: list[dict[str, float]] = []
    run.reporter.step = lambda report: said.append(report.values)  # type: ignore[method-assign]
    run.fit(10)
    assert [said[-1][name] for name in ("lr", "lr_2")] == pytest.approx([0.4 * 0.6, 0.2 * 0.6])
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.4, 0.2]  # the caller's


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
    run = trainer(tmp_path, kind, model=MODELS[kind](sigma_data=None), log_interval=1)
    values: list[float] = []
    run._log.write = lambda images, logged: values.append(logged["loss"])  # type: ignore[method-assign]
    run.fit(5 * BATCH)
    assert values == pytest.approx(GOLDEN[kind], abs=1e-4)


# Numbers that are not finite


def test_a_nan_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    broken(run.model, {3, 4}, monkeypatch)
    run.fit(2 * BATCH)
    before = weights(run.model), weights(run.best_model)
    with pytest.warns(UserWarning, match="2 of 4 steps of prior were not finite"):
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


def test_the_rig_is_what_it_says() -> None:
    assert all(model().kind == kind for kind, model in MODELS.items())
    assert clip().side is not None
