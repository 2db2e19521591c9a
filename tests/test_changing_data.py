"""A folder of pictures that changes while something trains on it, and what a training's exit status says."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_beside import works_until_stopped
from test_train_cli import dalle2, minuscule, train

import dalle_2
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import Dalle2Error, UsageError
from dalle_2.training.beside import beside
from dalle_2.training.interrupt import Terminated
from dalle_2.training.progress import Silent
from dalle_2.training.train import Training


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten captioned pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(10):
        Image.new("RGB", (40, 40), (25 * index, 200, 30)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a thing of shade {index}")
    return folder


def deleted(folder: Path) -> None:
    (folder / "3.png").unlink()


def broken(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"\x89PNG and then nothing")


def rewritten(folder: Path) -> None:
    Image.new("RGB", (30, 40), (1, 2, 3)).save(folder / "3.png")


def rewritten_to_the_byte(folder: Path) -> None:
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(content[:-20] + bytes(reversed(content[-20:])))


def added(folder: Path) -> None:
    shutil.copy(folder / "3.png", folder / "33.png")
    (folder / "33.txt").write_text("another")


def said_otherwise(folder: Path) -> None:
    (folder / "3.txt").write_text("something else")


def without_an_end(folder: Path) -> None:
    (folder / "3.png").unlink()
    os.mkfifo(folder / "3.png")


def gone(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")


CHANGES = {
    deleted: "or their captions changed, 10 then and 9 now", broken: "or their captions changed",
    rewritten: "or their captions changed", rewritten_to_the_byte: "were rewritten",
    added: "or their captions changed, 10 then and 11 now", said_otherwise: "or their captions changed",
    without_an_end: "or their captions changed",
}  # fmt: skip


class Meddling(Silent):
    """Changes something when a stage begins."""

    def __init__(self, stage: str, change: Callable[[], None]) -> None:
        self.stage, self.change = stage, change

    def start(self, name: str, images: int, total: int | None) -> None:
        if name == self.stage:
            self.change()

    def another(self) -> "Meddling":
        return self


def meddled(monkeypatch: pytest.MonkeyPatch, stage: str, change: Callable[[], None]) -> None:
    monkeypatch.setattr("dalle_2.training.progress.reporter", lambda **_: Meddling(stage, change))


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_says_what_has_become_of_it(change: Callable[[Path], None], pictures: Path) -> None:
    listed = ImageFolder(pictures, seed=3)
    listed.fingerprint()
    assert listed.at_size(8).changed() is None
    change(pictures)
    assert CHANGES[change] in str(listed.at_size(8).changed())
    assert {listed.digest(index) for index in range(10)} >= {""} or change not in (deleted, without_an_end)


@pytest.mark.parametrize("change", [added, without_an_end])
def test_a_training_ends_with_a_pipeline_and_a_warning(
    change: Callable[[Path], None], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command afterwards says in a sentence what to do."""
    out = tmp_path / "out"
    meddled(monkeypatch, "prior", lambda: change(pictures))
    said = train(out, "--data", str(pictures), "--set", "embeddings=none")
    assert said.status == 0, said.err
    assert said.out.splitlines()[0] == str(out)
    [warning] = [line for line in said.err.splitlines() if "dalle2: warning: " in line]
    assert f"{CHANGES[change]} while this training ran" in warning
    assert "train in another --out to learn from what is there now" in warning
    assert dalle_2.load(out, device="cpu").generate(["a thing"], 1, seeds=0).shape == (1, 3, 64, 64)
    monkeypatch.undo()
    again = train(out, "--data", str(pictures), "--set", "embeddings=none")
    assert (again.status, again.out) == (1, "")
    assert "put them back as they were to go on, delete that folder to train anew" in again.err


def test_what_is_put_back_is_gone_on_with(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages of a run have one fingerprint, though the folder changed between them."""
    out = tmp_path / "out"
    shutil.copytree(pictures, tmp_path / "kept")
    meddled(monkeypatch, "prior", lambda: deleted(pictures))
    assert train(out, "--data", str(pictures)).status == 0
    shutil.copy(tmp_path / "kept" / "3.png", pictures / "3.png")
    monkeypatch.undo()
    again = train(out, "--data", str(pictures))
    assert (again.status, "decoder: done before" in again.err) == (0, True), again.err


def test_both_lanes_have_one_list(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    meddled(monkeypatch, "embeddings", lambda: (added(pictures), deleted(pictures)))
    said = train(out, "--data", str(pictures), "--lanes", "2")
    assert said.status == 0, said.err
    assert "or their captions changed while this training ran" in said.err
    assert dalle_2.load(out, device="cpu").upsamplers


def test_a_folder_that_is_gone_is_one_sentence(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meddled(monkeypatch, "embeddings", lambda: gone(pictures))
    said = train(tmp_path / "out", "--data", str(pictures))
    assert (said.status, said.out) == (1, "")
    assert "can be read: 10 missing" in said.err
    listed = ImageFolder(pictures.parent / "elsewhere")
    (pictures.parent / "elsewhere").rename(pictures)
    assert "can't be read any more" in str(listed.changed())


def test_a_training_without_what_was_asked_for_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    meddled(monkeypatch, "prior", lambda: (out / "run" / "clip" / "done.json").unlink())
    said = train(out, "clip", "prior", "shapes-micro")
    assert (said.status, said.out) == (1, "")
    assert f"clip was trained, but {out}/run/clip does not hold it any more" in said.err
    monkeypatch.undo()
    assert train(out, "clip", "prior", "shapes-micro").status == 0


# Exit statuses


def stopped(folder: Path, *words: str, number: int = signal.SIGTERM) -> tuple[int, list[str]]:
    """Sends a signal to a command that trains two lanes; its status, and the last lines that it said."""
    long = [f"{stage}.run.images=100000000" for stage in ("prior", "decoder")]
    command = [sys.executable, "-m", "dalle_2", "train", "shapes-micro", "--out", str(folder), "--device", "cpu"]
    changes = [word for change in long for word in ("--set", change)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [*command, *minuscule(), *changes, "--lanes", "2", "--set", "draft=none", *words],
        stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    begun: set[str] = set()
    for line in process.stderr:
        begun |= {stage for stage in ("prior", "decoder") if line.startswith(f"{stage}: from the start")}
        if len(begun) == 2:
            break
    time.sleep(1)
    os.killpg(process.pid, number)  # as a terminal and some schedulers do
    said = process.communicate(timeout=100)[1]
    return process.returncode, said.splitlines()


def test_two_lanes_that_were_stopped_say_so_and_have_saved(tmp_path: Path) -> None:
    returned, said = stopped(tmp_path / "out", number=signal.SIGINT)
    assert returned == 130, said
    place = tmp_path / "out" / "run"
    last = f"stopped at decoder, not finished: the state is saved in {place}, and the same command goes on from there"
    assert said[-2:] == [last, "dalle2: interrupted"]
    assert not any("Traceback" in line for line in said)
    for stage in ("prior", "decoder"):
        assert (place / stage / "state.pth").exists()
    assert not [path for path in place.rglob(".*") if not path.name.startswith(".lock")]


def fails_when_stopped(tell: Any, folder: Path) -> None:
    works_until_stopped(tell, folder)
    raise OSError("the disk is full")


def dies_when_stopped(tell: Any, folder: Path) -> None:
    works_until_stopped(tell, folder)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (fails_when_stopped, OSError, "^the disk is full"),
        (dies_when_stopped, Dalle2Error, "was killed by SIGKILL"),
        (works_until_stopped, Terminated, None),
    ],
)
def test_a_lane_that_could_not_save_is_no_good_end(work: Any, error: Any, words: str | None, tmp_path: Path) -> None:
    with pytest.raises(error, match=words), beside(work, tmp_path, hear=lambda message: None):
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        raise Terminated(143)


def test_a_stage_that_the_recipe_lacks_is_still_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no stage 'prior_ar'"):
        from dalle_2.presets import preset

        Training(preset("shapes-micro"), tmp_path).train(["prior_ar"])
    assert dalle2("train", "shapes-micro", "--stop-status", "300").status == 2
