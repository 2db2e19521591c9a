"""The caller's learning rate is the caller's; the trainer's own schedule multiplies it for a step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR
from training_rig import BATCH, assert_same, assert_same_run, prior, trainer, user_batch, weights

from dalle_2 import DALLe2Trainer
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.training import state
from dalle_2.training.lr_schedule import LRSchedule
from dalle_2.training.muon import Muon
from dalle_2.training.trainer import TrainerSettings


def of(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, **settings: Any) -> DALLe2Trainer:
    chosen = TrainerSettings(dtype="fp32", **settings)
    return DALLe2Trainer(model, "prior", optimizer, save_dir=folder, settings=chosen)


def by_hand(rates: list[float]) -> dict[str, torch.Tensor]:
    """What PyTorch alone makes of the same batch at these rates."""
    model = prior().train()
    for rate in rates:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        optimizer.zero_grad()
        model.loss(user_batch("prior"))["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("first", ["scheduler", "trainer"])
@pytest.mark.parametrize("kind", ["lambda", "exponential"])
def test_a_scheduler_of_pytorch_is_followed(kind: str, first: str, tmp_path: Path) -> None:
    model = prior()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def scheduler() -> Any:
        return LambdaLR(optimizer, lambda n: 0.5**n) if kind == "lambda" else ExponentialLR(optimizer, 0.5)

    schedule = scheduler() if first == "scheduler" else None
    run = of(model, optimizer, tmp_path)
    schedule = schedule or scheduler()
    for _ in range(3):
        run.train_step(user_batch("prior"))
        schedule.step()
    assert_same(weights(model), by_hand([0.1, 0.05, 0.025]))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)


def test_a_rate_set_by_hand_stays_and_is_the_one_that_is_used(tmp_path: Path) -> None:
    model = prior()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = of(model, optimizer, tmp_path)
    run.train_step(user_batch("prior"))
    optimizer.param_groups[0]["lr"] = 0.3
    run.train_step(user_batch("prior"))
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert_same(weights(model), by_hand([0.1, 0.3]))


def test_the_trainers_own_schedule_multiplies(tmp_path: Path) -> None:
    model, used = prior(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = ExponentialLR(optimizer, 0.5)
    run = of(model, optimizer, tmp_path, lr_schedule=LRSchedule(warmup=24))  # 6 rows a step: 1/24, 7/24, 13/24
    for _ in range(3):
        used.append(run._step(user_batch("prior"))["lr"])
        schedule.step()
    assert used == pytest.approx([0.1 / 24, 0.05 * 7 / 24, 0.025 * 13 / 24])
    assert_same(weights(model), by_hand(used))


def test_a_group_that_is_added_later_learns_and_is_resumed(tmp_path: Path) -> None:
    def begun(steps: int) -> tuple[DALLe2Trainer, nn.Parameter]:
        model, extra = prior(), nn.Parameter(torch.ones(2))
        model.network.query.requires_grad_(False)
        rest = [p for p in model.parameters() if p.requires_grad]
        run = of(model, torch.optim.AdamW(rest, lr=1e-2), tmp_path)
        for _ in range(steps):
            run.train_step(user_batch("prior"))
        model.network.query.requires_grad_(True)
        run.optimizer.add_param_group({"params": [model.network.query, extra], "lr": 0.05})
        return run, extra

    run, extra = begun(2)
    with torch.no_grad():
        extra += 1
    before = run.model.network.query.detach().clone()
    run.train_step(user_batch("prior"))
    assert not torch.equal(run.model.network.query, before)
    run.save()
    again, other = begun(0)
    assert again.resume()
    assert [group["lr"] for group in again.optimizer.param_groups] == [1e-2, 0.05]
    assert torch.equal(other, torch.full((2,), 2.0))
    for one in (run, again):
        one.train_step(user_batch("prior"))
    assert_same_run(run, again)


def test_a_resumed_run_has_the_rate_that_it_had(tmp_path: Path) -> None:
    run = trainer(tmp_path, lr=1e-2, lr_schedule=LRSchedule(warmup=80))
    run.optimizer.param_groups[0]["lr"] = 3e-3
    run.fit(2 * BATCH)
    again = trainer(tmp_path, lr=1e-2, lr_schedule=LRSchedule(warmup=80))
    again.resume()
    assert again.optimizer.param_groups[0]["lr"] == 3e-3


def test_a_state_of_an_earlier_release_keeps_the_callers_rate(tmp_path: Path) -> None:
    """Those hold the rate of the last step, schedule and all."""
    run = trainer(tmp_path, lr=1e-2)
    run.fit(BATCH)
    old = state.load_state(tmp_path)
    for name in ("run", "config", "optimizer_type", "apart", "passes", "skipped"):
        del old[name]
    old["optimizer"]["param_groups"][0]["lr"] = 1e-5
    (tmp_path / state.STATE).unlink()
    state.save_state(tmp_path, {name: value for name, value in old.items() if name != "format"})
    again = trainer(tmp_path, lr=1e-2)
    assert again.resume()
    assert (again.images, again.passes.done, again.passes.rows) == (BATCH, 0, BATCH)
    assert again.optimizer.param_groups[0]["lr"] == 1e-2


# A state that can be read back, and into which optimiser


def test_a_number_of_numpy_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    model = prior()
    run = of(model, torch.optim.AdamW(model.parameters(), lr=np.float64(1e-3), betas=(np.float64(0.5), 0.9)), tmp_path)
    run.train_step(user_batch("prior"))
    run.save()
    other = prior()
    again = of(other, torch.optim.AdamW(other.parameters()), tmp_path)
    assert again.resume()
    group = again.optimizer.param_groups[0]
    assert (type(group["lr"]), group["lr"], group["betas"]) == (float, 1e-3, (0.5, 0.9))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), r"optimizer\['param_groups'\]\[0\]\['tag'\] is a object"),
        ({"deep": [1, Path("x")]}, r"\['tag'\]\['deep'\]\[1\] is a PosixPath"),
        (np.zeros(2), "is a ndarray"),
    ],
)
def test_what_cannot_be_read_back_is_refused_before_the_good_state_goes(value: Any, said: str, tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(BATCH)
    run.optimizer.param_groups[0]["tag"] = value
    with pytest.raises(UsageError, match=f"{said}, which a saved state can't hold"):
        run.save()
    with pytest.raises(UsageError, match="which a saved state can't hold"):
        run.fit(2 * BATCH)  # at once, and not when it is time to save
    assert run.images == BATCH
    again = trainer(tmp_path)
    assert again.resume()
    assert again.images == BATCH
    assert not list(tmp_path.glob(".*"))


def test_another_optimisers_state_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    trainer(tmp_path).fit(BATCH)  # with AdamW
    model = prior()
    run = of(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path, ema_halflife=20.0)
    before = weights(model)
    with pytest.raises(CheckpointError, match="was written by AdamW, and this trainer has SGD: give it AdamW"):
        run.resume()
    old = state.load_state(tmp_path)
    del old["optimizer_type"]
    with pytest.raises(CheckpointError, match="doesn't fit this SGD: it says nothing of momentum"):
        run._restore(old)
    assert_same(weights(model), before)
    assert run.images == 0
    run.train_step(user_batch("prior"))


def test_the_optimiser_of_the_command_goes_on(tmp_path: Path) -> None:
    """PyTorch adds to an optimiser's defaults what this one doesn't know."""

    def run() -> DALLe2Trainer:
        model = prior()
        return of(model, Muon([{"params": [*model.parameters()]}], lr=1e-3), tmp_path)

    first, again = run(), run()
    first.train_step(user_batch("prior"))
    first.save()
    assert again.resume()
    for one in (first, again):
        one.train_step(user_batch("prior"))
    assert_same_run(first, again)


def test_the_state_of_other_parameters_is_one_sentence(tmp_path: Path) -> None:
    trainer(tmp_path).fit(BATCH)
    others = [*prior().parameters()]
    run = of(prior(), torch.optim.AdamW(others), tmp_path, ema_halflife=20.0)
    said = rf"it moved 0 parameters beside the model's, this one moves {len(others)}; make"
    with pytest.raises(CheckpointError, match=said):
        run.resume()


def test_a_refused_state_is_named_without_colours(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(BATCH)
    path = tmp_path / state.STATE
    torch.save({"format": 1, "lr": np.float64(1.0)}, path)
    state.digest_file(path).write_text(f'{{"sha256": "{state.sha256_of(path)}"}}')
    with pytest.raises(CheckpointError) as caught:
        trainer(tmp_path).resume()
    assert "is no training state of this package" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_skipped_steps_are_counted_across_a_resume(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.skipped = 7
    run.save()
    again = trainer(tmp_path)
    again.resume()
    assert again.skipped == 7
