"""Idle threads sleep where a command chooses: in its own process, in its children, and not against a person's wish."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dalle_2 import threads
from dalle_2.cli import doctor
from dalle_2.training.beside import beside


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.SPINNING:
        monkeypatch.delenv(name, raising=False)


def policy_of(command: list[str]) -> str:
    """What OpenMP itself says when a command has loaded torch."""
    code = "import sys; from dalle_2.cli.main import main; main(sys.argv[1:])"
    environment = {**os.environ, "OMP_DISPLAY_ENV": "TRUE"}
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True, check=True
    )
    found = re.search(r"OMP_WAIT_POLICY\s*=\s*'(\w+)'", done.stderr)
    assert found, done.stderr
    return found[1]


def test_openmp_hears_of_it_before_torch_is_loaded() -> None:
    assert policy_of(["doctor"]) == "PASSIVE"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "2000"), ("KMP_BLOCKTIME", "200")]
)
def test_what_a_person_says_stays(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    threads.wait_asleep()
    assert threads.chosen(os.environ) == {name: value}


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    threads.wait_asleep()
    assert threads.chosen(os.environ) == threads.WAITING


def tells(tell: Callable[[Any], None]) -> None:
    tell(threads.chosen(os.environ))


@pytest.mark.parametrize("said", [{}, {"GOMP_SPINCOUNT": "2000"}])
def test_a_training_beside_another_waits_so_and_the_caller_keeps_its_environment(
    said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    heard: list[dict[str, str]] = []
    with beside(tells, hear=heard.append):
        assert threads.chosen(os.environ) == said
    assert heard == [said or threads.WAITING]


def test_the_doctor_says_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._environment()["idle threads"] == "spinning for a while (nothing is set)"
    threads.wait_asleep()
    assert doctor._environment()["idle threads"] == "asleep (OMP_WAIT_POLICY=passive, as every command sets it)"
    assert not list(doctor.find_spinning(os.environ))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinity")
    assert doctor._environment()["idle threads"] == "by your setting (OMP_WAIT_POLICY=ACTIVE, GOMP_SPINCOUNT=infinity)"
    assert [found.cure for found in doctor.find_spinning(os.environ)] == [
        "unset OMP_WAIT_POLICY: commands then have them sleep", "unset GOMP_SPINCOUNT: commands then have them sleep"
    ]  # fmt: skip
    assert not list(doctor.find_spinning({"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "200"}))
