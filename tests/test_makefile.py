"""What make would do: with which Python, from which index, and to an environment that is there."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., str]:
    """The commands that make would run with an environment in tmp_path/venv. It runs none of them."""

    def dry(*arguments: str, **environment: str) -> str:
        command = ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", *arguments]
        clean = {"PATH": os.environ["PATH"], **environment}  # not what a make above says
        return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout

    return dry


def environment_of(version: str, folder: Path, *stamps: str) -> None:
    """An environment as make leaves it, without what is in it."""
    folder.mkdir()
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}.7\n")
    later = time.time() + 100  # than all files here
    for number, stamp in enumerate(stamps):
        (folder / stamp).touch()
        os.utime(folder / stamp, (later + number, later + number))


STAMPS = (".made", ".core", ".compiled", ".dev")


def test_a_new_environment_takes_the_index_and_compiles_what_it_installs(
    made: Callable[..., str], tmp_path: Path
) -> None:
    said = made("demo", f"PYTHON={sys.executable}", "TORCH_INDEX=https://index.invalid/cpu")
    assert f"{sys.executable} -m venv " in said
    assert "--extra-index-url https://index.invalid/cpu" in said
    assert f"-m compileall -qq -j 0 {tmp_path / 'venv'}/lib dalle_2" in said
    assert said.index("-m pip") < said.index("compileall") < said.index("dalle2 generate")
    assert "index" not in made("demo", f"PYTHON={sys.executable}")


def test_no_folder_is_emptied_that_make_did_not_fill(made: Callable[..., str], tmp_path: Path) -> None:
    environment_of("3.8", tmp_path / "venv")
    assert "--clear" not in made("demo", f"PYTHON={sys.executable}")


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_another_python_has_the_environment_made_anew(target: str, made: Callable[..., str], tmp_path: Path) -> None:
    environment_of("3.8", tmp_path / "venv", *STAMPS)
    for said in (made(target, f"PYTHON={sys.executable}"), made(target, PYTHON=sys.executable)):
        assert f"was made with Python 3.8, and {sys.executable} is {VERSION}: it is made anew" in said
        assert f"{sys.executable} -m venv --clear " in said
        assert "--editable ." in said


@pytest.mark.parametrize("named", [True, False])
def test_the_same_python_or_none_leaves_it_alone(named: bool, made: Callable[..., str], tmp_path: Path) -> None:
    environment_of(VERSION if named else "3.8", tmp_path / "venv", *STAMPS)
    said = made("test", *([f"PYTHON={sys.executable}"] if named else []))
    assert "venv --clear" not in said
    assert "-m pip" not in said
    assert "-m pytest" in said


def test_an_environment_from_before_is_compiled_and_otherwise_left(made: Callable[..., str], tmp_path: Path) -> None:
    environment_of(VERSION, tmp_path / "venv", ".made", ".core", ".dev")
    said = made("test")
    assert "compileall" in said
    assert "-m pip" not in said
