"""What the trainer refuses, in one sentence and before it changes anything."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_rig import assert_same, prior, trainer, user_batch, weights

from dalle_2 import DALLe2Trainer, DDIMSampler, NoiseScheduler
from dalle_2.errors import DataError, UsageError


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


@pytest.mark.parametrize("wrong", [-1, 50, 1000, float("nan")])
@pytest.mark.parametrize("kind", ["prior", "decoder"])
def test_timesteps_outside_the_table_are_refused(kind: str, wrong: float, tmp_path: Path) -> None:
    run, batch = trainer(tmp_path, kind), user_batch(kind)
    before = weights(run.model)
    t = batch["t"].float() if math.isnan(wrong) else batch["t"].clone()
    t[2] = wrong
    with pytest.raises(UsageError, match=rf"t must lie in 0 \.\.\. 49 \(cosine, T = 50\), got {wrong}"):
        run.train_step(batch | {"t": t})
    assert_same(before, weights(run.model))
    assert run.steps == 0
    run.train_step(batch | {"t": batch["t"] * 0})
    run.train_step(batch | {"t": batch["t"] * 0 + 49})


def test_a_trainer_without_data_says_so(tmp_path: Path) -> None:
    model = prior()
    run = DALLe2Trainer(model, "prior", torch.optim.SGD(model.parameters(), lr=0.1), save_dir=tmp_path)
    for call in (lambda: run.fit(1), lambda: run.train(1)):
        with pytest.raises(UsageError, match="this trainer has no dataloader"):
            call()
