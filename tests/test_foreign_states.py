"""States and their notes that are damaged, or somebody else's: each is refused in a sentence that names the place."""

import copy
import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from training_rig import BATCH, assert_same, trainer, weights

from dalle_2.cli.main import _verdict
from dalle_2.errors import CheckpointError, Dalle2Error
from dalle_2.paths import atomic_path, disk_error
from dalle_2.training import state


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).fit(BATCH)
    return folder / state.STATE


def written(content: Any, folder: Path) -> Path:
    """A file of torch.save with a digest that fits it."""
    path = folder / state.STATE
    torch.save(content, path)
    state.digest_file(path).write_text(json.dumps({"sha256": state.sha256_of(path)}))
    return path


def first_average(content: dict[str, Any]) -> dict[str, Any]:
    return next(iter(content["optimizer"]["state"].values()))


# Each changes a whole state; the words are those of the sentence.
FOREIGN = {
    "a list": (lambda s: [1, 2], "has another format"),
    "other weights": (lambda s: {"epoch": 3, "state_dict": s["model"]}, "has another format"),
    "no images": (lambda s: s | {"images": None}, "its 'images' is a NoneType"),
    "a text of images": (lambda s: s | {"images": "many"}, "its 'images' is a str"),
    "fewer than no images": (lambda s: s | {"images": -8}, "its 'images' is -8"),
    "no model": (lambda s: {k: v for k, v in s.items() if k != "model"}, "it has no 'model'"),
    "a model of texts": (lambda s: s | {"model": {"a": "b"}}, "its 'model' holds something else than tensors"),
    "a list of weights": (lambda s: s | {"model": list(s["model"].values())}, "its 'model' is a list"),
    "no optimiser": (lambda s: s | {"optimizer": None}, "its 'optimizer' is a NoneType"),
    "an empty optimiser": (lambda s: s | {"optimizer": {}}, "of its 'optimizer', it has no 'state'"),
    "a text in the groups": (lambda s: changed(s, "groups"), "doesn't fit this one"),
    "averages of another shape": (lambda s: changed(s, "shape"), "'exp_avg' has another shape"),
    "averages that are gone": (lambda s: changed(s, "gone"), "it has no 'exp_avg_sq'"),
    "a rate in words": (lambda s: changed(s, "rate"), "its 'lr' is no number"),
    "an odd run": (lambda s: s | {"run": {"stage": 3}}, "of its 'run', its 'stage' is a int"),
    "an odd pass": (lambda s: s | {"passes": {"done": 1}}, "of its 'passes', it has no 'rows'"),
    "an odd count": (lambda s: s | {"skipped": []}, "its 'skipped' is a list"),
    "odd parameters apart": (lambda s: s | {"apart": [1]}, "doesn't fit this one"),
    "no average": (lambda s: s | {"ema": 3}, "its 'ema' is a int"),
}  # fmt: skip


def changed(content: dict[str, Any], how: str) -> dict[str, Any]:
    content = copy.deepcopy(content)
    if how == "groups":
        content["optimizer"]["param_groups"] = ["a"]
    elif how == "rate":
        content["optimizer"]["param_groups"][0]["lr"] = "fast"
    elif how == "shape":
        first_average(content)["exp_avg"] = torch.zeros(3)
    else:
        del first_average(content)["exp_avg_sq"]
    return content


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_state_is_refused_in_a_sentence_and_changes_nothing(name: str, saved: Path, tmp_path: Path) -> None:
    change, words = FOREIGN[name]
    written(change(torch.load(saved, weights_only=True)), tmp_path)
    run = trainer(tmp_path)
    before, rates = weights(run.model), [group["lr"] for group in run.optimizer.param_groups]
    with pytest.raises(Dalle2Error) as caught:
        run.resume()
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(before, weights(run.model))
    assert (run.images, [group["lr"] for group in run.optimizer.param_groups]) == (0, rates)


def test_the_scale_of_a_foreign_state_is_looked_at(saved: Path, tmp_path: Path) -> None:
    written(torch.load(saved, weights_only=True) | {"scaler": {"scale": "large"}}, tmp_path)
    run = trainer(tmp_path)
    run._scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(CheckpointError, match="the scale in the state in .* is damaged: its scale is no number"):
        run.resume()


@pytest.mark.parametrize("run", [3, [], {"stage": "prior"}, {"stage": "prior", "kind": 1, "seed": 0, "settings": {}}])
def test_an_odd_note_beside_a_state_says_nothing_of_it(run: Any, saved: Path, tmp_path: Path) -> None:
    path = written(torch.load(saved, weights_only=True), tmp_path)
    digest = state.digest_file(path)
    digest.write_text(json.dumps({**json.loads(digest.read_text()), "run": run}))
    again = trainer(tmp_path)
    assert again.resume()
    again.fit(2 * BATCH)
    assert state.saved_run("[" * 100_000) is None
    assert state.load_state(tmp_path)["images"] == 2 * BATCH


def test_a_state_that_the_disk_can_not_read_falls_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path)
    run.fit(BATCH)
    run.fit(2 * BATCH)
    digest = state.sha256_of

    def fails(path: Path) -> str:
        if path.name == state.STATE:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return digest(path)

    monkeypatch.setattr(state, "sha256_of", fails)
    again = trainer(tmp_path)
    assert again.resume()
    assert again.images == BATCH


# What the system says while a state is written

FULL = "the disk is full while writing {}: free some space or write elsewhere"
LIMIT = "{} would be larger than a file may be here: raise the limit (ulimit -f), or write to another disk"
BROKEN = "the disk failed while reading or writing {}: look at the system's log, and write elsewhere"


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, FULL), (errno.EFBIG, LIMIT), (errno.EIO, BROKEN)])
@pytest.mark.parametrize("size", [0, 100, 5000, 20_000, 60_000])
def test_what_the_disk_said_is_said_whatever_pytorch_makes_of_it(
    size: int, number: int, words: str, tmp_path: Path
) -> None:
    """PyTorch meets the error while it writes, and raises one of its own while it closes what it wrote to."""

    class Disk:
        """A file on a disk that has room for so many bytes."""

        def __init__(self) -> None:
            self.held = 0

        def write(self, data: Any) -> int:
            self.held += len(data)
            if self.held > size:
                raise OSError(number, os.strerror(number))
            return len(data)

        def flush(self) -> None:
            pass

    target = tmp_path / "state.pth"
    with pytest.raises(OSError) as caught, atomic_path(target):
        torch.save({"x": torch.zeros(10**4), "y": torch.ones(10**4)}, Disk())
    assert _verdict(caught.value) == (words.format(target), 1)


def test_a_limit_on_the_size_of_files_is_called_so(tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:  # the limit can't be taken back
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            trainer(tmp_path).save()
        except OSError as error:
            status = 0 if _verdict(error)[0] == LIMIT.format(tmp_path / state.STATE) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert not list(tmp_path.glob(".*"))


def test_an_error_that_no_disk_is_behind_stays_what_it_is(tmp_path: Path) -> None:
    assert disk_error(ValueError("x")) is None
    assert disk_error(FileNotFoundError(errno.ENOENT, "gone", "x")) is None
    with pytest.raises(RuntimeError, match="^its own$"), atomic_path(tmp_path / "x"):
        raise RuntimeError("its own")
