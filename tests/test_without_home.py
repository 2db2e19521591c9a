"""A user without a home: containers start processes by a number that no list of users knows, and set no HOME."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import dalle_2
from dalle_2 import copies, hub, paths
from dalle_2.cli.main import main
from dalle_2.data.dataset import load_dataset
from dalle_2.errors import HubError, UsageError
from dalle_2.published import published_as

pwd = pytest.importorskip("pwd", reason="users without a home are of Unix")
KARLO = "kakaobrain/karlo-v1-alpha"


@pytest.fixture
def nobody(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process belongs to nobody, and stands in an empty folder."""
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_HUB_CACHE", "USER"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(hub, "_accepted_now", set())
    return workdir


def test_what_is_here_and_the_doctor(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row["state"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["shapes-tiny"] == "here"
    assert rows["karlo"] == "not here"
    assert main(["doctor"]) == 0
    assert "trap: downloads are kept in a home folder, and this user has none (no HOME, and no entry" in (
        capsys.readouterr().out
    )
    assert main(["models", "forget"]) == 0
    assert not list(nobody.iterdir())


@pytest.mark.parametrize("call", [["generate", "a red circle", "--pipeline", "karlo"], ["models", "download", "karlo"]])
def test_what_must_be_fetched_is_one_sentence(
    call: list[str], nobody: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepting = ["--accept-licence"] if "download" in call else []
    assert main([*call, *accepting]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"dalle2: {KARLO} isn't here, and would be kept in a home folder, but this user has none")
    assert said.endswith("set HOME, or HF_HOME to a folder for downloads")
    assert not list(nobody.iterdir())


def test_pictures_are_drawn_and_no_weights_kept(
    nobody: Path, micro_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a red circle", "--pipeline", str(micro_pipeline), "--device", "cpu", "--quiet"]) == 0
    assert [path.name for path in nobody.iterdir()] == ["generations"]
    assert copies.place(micro_pipeline) is None
    assert copies.copies() == {}


def test_a_path_in_a_home_that_nobody_has(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for call in (["generate", "a red circle", "--out=~/pictures"], ["train", "--data", "~/pictures"]):
        assert main(call) == 2
        assert "~/pictures lies in a home folder, and this user has none" in capsys.readouterr().err
    with pytest.raises(UsageError, match="name a folder without ~"):
        load_dataset("~/pictures")
    assert paths.at_home("~draft.png") == Path("~draft.png")  # a name as any other
    Image.new("RGB", (4, 4)).save("~draft.png")
    assert [path.name for path in nobody.iterdir()] == ["~draft.png"]


def test_a_licence_holds_for_the_process_where_it_can_not_be_noted(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(nobody / "hub"))
    row = published_as("karlo")
    assert row is not None
    assert hub.to_accept(KARLO) == row
    hub.accept(row)
    assert hub.to_accept(KARLO) is None
    monkeypatch.setattr(hub, "_accepted_now", set())
    assert hub.to_accept(KARLO) == row
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/none")  # a place that can't be written
    hub.accept(row)
    assert hub.to_accept(KARLO) is None


def test_a_hub_cache_that_may_not_be_written(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/somewhere")

    def denied(repo: str) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(hub, "_listed", denied)
    with pytest.raises(HubError, match="nothing may be written into the hub cache /somewhere/hub: name another"):
        hub.fetch("owner/name")


def _in_a_namespace() -> list[str]:
    """What starts a command as user 54321, where that is possible; nothing elsewhere."""
    start = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if shutil.which("unshare") is None or subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        return []
    return start


def test_a_process_of_user_54321(workdir: Path) -> None:
    start = _in_a_namespace()
    if not start:
        pytest.skip("no user namespaces here")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(dalle_2.__file__).parents[1])}
    for call in (["models"], ["generate", "a red circle", "--steps", "1"]):
        done = subprocess.run(
            [*start, sys.executable, "-m", "dalle_2", *call],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert [path.name for path in workdir.iterdir()] == ["generations"]
