"""Weights the way people write them, and whose state a folder holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_rig import BATCH, MODELS, Pairs, assert_same, awake, decoder, prior, trainer, weights

import dalle_2
from dalle_2 import DALLe2, Prior
from dalle_2.data.dataset import Batches
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.checkpoints import load_model
from dalle_2.models.prior import PriorConfig
from dalle_2.training import state


@pytest.fixture(scope="module")
def usual() -> Prior:
    """A prior of the default settings but for what can be read off its tensors."""
    return awake(Prior.from_config(PriorConfig(dim=16, depth=1)))


WAYS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda tensors: tensors,
    "parallel": lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    "compiled": lambda tensors: {f"_orig_mod.module.{name}": value for name, value in tensors.items()},
    "of a module round it": lambda tensors: {f"model.{name}": value for name, value in tensors.items()},
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "loss": 0.5},
    "model": lambda tensors: {"model": tensors, "optimizer": {"state": {}, "param_groups": []}},
    "nested": lambda tensors: {"checkpoint": 1, "model": {"state_dict": tensors}},
    "average": lambda tensors: {"ema": tensors, "model": {name: value + 1 for name, value in tensors.items()}},
    "by name": lambda tensors: {"prior": tensors, "args": {"lr": 0.1}},
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_without_settings_are_read_where_they_are_the_default_ones(
    way: str, usual: Prior, tmp_path: Path
) -> None:
    path = tmp_path / "prior.pth"
    torch.save(WAYS[way](dict(usual.state_dict())), path)
    kind = "prior" if way == "by name" else None
    with pytest.warns(UserWarning, match=r"prior.pth holds weights without settings.*\(T = 1000, it predicts eps\)"):
        model = load_model(path, kind)
    assert_same(weights(model), weights(usual))
    assert (model.config.dim, model.config.depth, model.config.T) == (16, 1, 1000)


def test_a_pipeline_takes_them(usual: Prior, tmp_path: Path) -> None:
    torch.save(usual.state_dict(), tmp_path / "prior.pth")
    save_file(usual.state_dict(), tmp_path / "prior.safetensors")
    for name in ("prior.pth", "prior.safetensors"):
        pipeline = DALLe2(tmp_path / name, decoder(), device="cpu")
        with pytest.warns(UserWarning, match="dalle_2.save_model"):
            read = pipeline.prior
        assert_same(weights(read), weights(usual))


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "clip"])
@pytest.mark.parametrize("shape", ["config", "settings", "deep"])
def test_settings_beside_the_weights_are_taken(
    kind: str, shape: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = awake(MODELS[kind]())
    config, tensors = model.config.model_dump(mode="json"), model.state_dict()
    content = {
        "config": {"state_dict": tensors, "config": config},
        "settings": {"model": tensors, "settings": {**config, "lr": 0.1}},
        "deep": {"config": config, "model": {"weights": tensors}},
    }[shape]
    torch.save(content, tmp_path / "x.pth")
    again = load_model(tmp_path / "x.pth", kind)
    assert_same(weights(again), weights(model))
    assert again.config == model.config
    assert not recwarn.list


@pytest.mark.parametrize("average", [None, 20.0])
def test_a_trainers_whole_state_is_a_weight_file(
    average: float | None, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = trainer(tmp_path, ema_halflife=average)
    run.fit(3 * BATCH)
    pipeline = DALLe2(tmp_path / state.STATE, decoder(), device="cpu")
    assert_same(weights(pipeline.prior), weights(run.best_model))
    assert pipeline.prior.config == run.model.config
    assert not recwarn.list


CURE = r"dalle_2\.save_model\(model, 'x\.pth'\)"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: prior().state_dict(), f"of a prior that don't fit the default settings.*{CURE}"),
        (lambda: {"state_dict": prior().state_dict(), "config": {"dim": 3}}, f"the settings beside them.*{CURE}"),
        (lambda: {"state_dict": prior().state_dict(), "config": {"dim": "x"}}, f"the settings beside them.*{CURE}"),
        (lambda: decoder().state_dict(), "holds a decoder, but a prior was expected"),
        (lambda: nn.Linear(1, 1).state_dict(), "is not a checkpoint of this package"),
        (lambda: {"epoch": 3}, "is not a checkpoint of this package"),
        (lambda: prior(), r"holds more than plain values.*write a model anew with dalle_2\.save_model"),
    ],
)
def test_what_does_not_say_enough_names_the_cure(content: Callable[[], Any], words: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(tmp_path / "x.pth", "prior")
    assert "\n" not in str(caught.value)


def test_save_model_is_at_hand(tmp_path: Path) -> None:
    model = prior()
    dalle_2.save_model(model, tmp_path / "prior.pth")
    assert_same(weights(dalle_2.load_model(tmp_path / "prior.pth")), weights(model))


# Whose state a folder holds


def saved(folder: Path, kind: str, **how: Any) -> Any:
    run = trainer(folder, kind, **how)
    run.fit(BATCH)
    return run


@pytest.mark.parametrize("call", ["fit", "train", "save", "resume"])
def test_two_trainers_do_not_destroy_each_others_state(call: str, tmp_path: Path) -> None:
    first = saved(tmp_path, "prior")
    content = (tmp_path / state.STATE).read_bytes()
    other = trainer(tmp_path, "decoder")
    calls = {"fit": lambda: other.fit(BATCH), "train": lambda: other.train(1)}
    with pytest.raises(
        UsageError, match="the run of a prior with seed 0, not of a decoder with seed 0.*save_dir of it"
    ):
        calls.get(call, getattr(other, call))()
    assert other.steps == 0
    assert (tmp_path / state.STATE).read_bytes() == content
    first.fit(2 * BATCH)


@pytest.mark.parametrize("call", ["save", "resume"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3}, "the run of a prior with seed 0, not of a prior with seed 3"),
        ({"model": prior(T=100)}, "the run of a prior with T 50, not with T 100"),
        ({"model": prior(target="x_0", drop=0.5)}, "with target eps, drop 0.1, not with target x_0, drop 0.5"),
    ],
)
def test_nor_do_two_of_one_stage(call: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    saved(tmp_path, "prior")
    with pytest.raises(UsageError, match=words):
        getattr(trainer(tmp_path, "prior", **changes), call)()


def test_a_model_of_other_sizes_does_not_write_over_it(tmp_path: Path) -> None:
    saved(tmp_path, "prior")
    with pytest.raises(UsageError, match="the run of a prior with width 16, not with width 32"):
        trainer(tmp_path, model=prior(width=32)).save()


def test_a_stage_has_a_name_of_its_own(tmp_path: Path) -> None:
    first = saved(tmp_path, "decoder")
    first.name = "decoder_inpaint"
    with pytest.raises(UsageError, match=r"of a decoder with seed 0, not of a decoder_inpaint \(a decoder\) with seed"):
        first.save()


def test_how_a_model_is_sampled_is_no_part_of_its_run(tmp_path: Path) -> None:
    saved(tmp_path, "prior")
    other = trainer(tmp_path, model=prior(steps=5, guidance=3.0, candidates=4))
    assert other.resume()
    other.fit(2 * BATCH)


def test_twins_notice_each_other(tmp_path: Path) -> None:
    """Two that nothing distinguishes: the later one begins anew, and the first one is told."""
    first = saved(tmp_path, "prior")
    saved(tmp_path, "prior").save()
    with pytest.raises(UsageError, match="another trainer has saved a state in .* since this one did: give each"):
        first.save()


def test_trainers_with_one_address_notice_each_other(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/bucket"
    saved(address, "prior")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"{address} holds the run of a prior .*, not of a decoder"):
        trainer(address, "decoder").save()


def test_a_state_without_a_name_is_resumed(tmp_path: Path) -> None:
    """As earlier releases wrote it."""
    run = saved(tmp_path, "prior")
    old = state.load_state(tmp_path)
    names = ("format", "run", "config", "optimizer_type", "apart", "passes", "skipped")
    for path in tmp_path.glob("state*"):
        path.unlink()
    state.save_state(tmp_path, {name: value for name, value in old.items() if name not in names})
    again = trainer(tmp_path, "prior", dataloader=Batches(Pairs(), BATCH, seed=1))
    assert again.resume()
    for one in (run, again):
        one.fit(4 * BATCH)
    assert_same(weights(run.model), weights(again.model))
    other = trainer(tmp_path / "other", "decoder")
    (tmp_path / "other").mkdir()
    state.save_state(tmp_path / "other", {name: value for name, value in old.items() if name not in names})
    with pytest.raises(UsageError, match="the run of a prior with seed 0, not of a decoder"):
        other.resume()
