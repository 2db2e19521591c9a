"""Steps that are not finite: counted over all starts, told to everyone, and never the end of a stage that is done."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_cli import train
from training_rig import BATCH, broken, trainer

from dalle_2.errors import Dalle2Error
from dalle_2.training.card import training_card
from dalle_2.training.lost_steps import check_learned
from dalle_2.training.progress import Lines, Report, Silent, Telling, relay_to, warnings_told

HOT = ["shapes-micro", "--set", "clip.run.lr=1e6", "--set", "clip.run.warmup=1"]


@pytest.mark.parametrize("images", [9 * 16, 40 * 16])
def test_a_stage_of_lost_steps_is_not_done_however_often_it_is_asked_for(images: int, tmp_path: Path) -> None:
    command = [*HOT, "--set", f"clip.run.images={images}", "--set", "clip.run.save_every=1e-9"]
    for _ in range(2):
        said = train(tmp_path, "clip", *command)
        assert (said.status, said.out) == (1, ""), said.err
        assert "not finite" in said.err.splitlines()[-1]
        assert "Traceback" not in said.err
        assert not (tmp_path / "run" / "clip" / "done.json").exists()
    assert said.err.splitlines()[-1].startswith("dalle2: ")
    assert "clip.run.lr" in said.err.splitlines()[-1]


def test_everybody_is_told_and_the_log_the_state_and_the_card_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, log_interval=1, save_every=1e-9)
    broken(run.model, {2}, monkeypatch)
    with pytest.warns(UserWarning, match="^1 of 4 steps of prior were not finite and changed nothing"):
        run.fit(4 * BATCH)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.get("skipped", 0) for line in lines] == [0, 1, 1, 1]
    again = trainer(tmp_path)
    again.resume()
    assert (again.lost, again.skipped) == (1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.fit(6 * BATCH)  # it was told
    origin = {"images": 64, "parameters": 1, "minutes": 0, "machine": "m", "run": {"lr": 1, "batch": 8}}
    from dalle_2.presets import preset

    recipe = preset("shapes-micro")
    assert "finite" not in training_card(recipe, {"prior": origin})
    card = training_card(recipe, {"prior": {**origin, "skipped": 1}, "clip": origin})
    assert "Steps that were not finite and changed nothing: 1 of prior." in card


class Steps:
    """What a run says of itself."""

    name, lost, skipped, best_model = "prior", 0, 0, torch.nn.Linear(2, 2)

    def __init__(self, steps: int, **values: Any) -> None:
        self.steps = steps
        vars(self).update(values)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            Steps(9, lost=8, skipped=8),
            "8 of 9 steps of prior .* nothing, the last 8 in a row: it is not done; delete x",
        ),
        (Steps(1000, lost=3, skipped=3), "the last 3 in a row"),
        (Steps(2, lost=2, skipped=2), "the last 2 in a row"),
        (Steps(1000, lost=101), "101 of 1000 steps"),
        (Steps(1000, lost=2, skipped=2), None),
        (Steps(1000, lost=100), None),
        (Steps(0), None),
    ],
)
def test_what_counts_as_not_learned(run: Steps, words: str | None) -> None:
    if words is None:
        return check_learned(run, Path("x"))
    with pytest.raises(Dalle2Error, match=words):
        check_learned(run, Path("x"))


def test_weights_that_the_last_step_made_infinite_are_no_result(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(BATCH)
    check_learned(run, tmp_path)
    next(run.best_model.parameters()).data.view(-1)[0] = math.inf
    with pytest.raises(Dalle2Error, match=r"the weights of prior are not finite .* prior.run.dtype=fp32"):
        check_learned(run, tmp_path)


def test_a_scaler_that_seeks_its_scale_loses_no_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run._scaler = torch.amp.GradScaler("cpu", init_scale=math.inf)  # every gradient overflows
    run.fit(3 * BATCH)
    assert (run.skipped, run.lost) == (3, 0)


def test_a_person_sees_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every=0.0)
    lines.start("clip", 0, 100)
    lines.step(Report(10, 10, {"loss": 1.0}, skipped=2))
    assert "2 steps skipped, not finite" in capsys.readouterr().err


def test_what_the_other_lane_warns_of_is_warned_of_here() -> None:
    told: list[Any] = []
    relay = relay_to(Silent())
    with warnings_told(told.append):
        warnings.warn("1 of 4 steps", stacklevel=1)
        Telling(told.append).close()
    relay(told.pop())
    with pytest.warns(UserWarning, match="^1 of 4 steps$"):
        relay(told.pop())
