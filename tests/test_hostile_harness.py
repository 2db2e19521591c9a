"""The harness for hostile inputs notices each thing that an input must not do."""

import os
import time
from pathlib import Path
from random import Random

import pytest
from hostile.harness import CANARY, Case, attack

from dalle_2.errors import DataError


def _number(random: Random, folder: Path) -> Path:
    (folder / "input").write_text(str(random.random()))
    return folder / "input"


def _refused(path: Path) -> None:
    raise DataError(f"{path.name} is not good")


def _unclear(path: Path) -> None:
    raise TypeError(path.name)


def _died(path: Path) -> None:
    os.abort()


def _code(path: Path) -> None:
    (path.parent / CANARY).touch()


def _slow(path: Path) -> None:
    time.sleep(30)


CASES = {
    "read": Case(_number, Path.read_text),
    "refused": Case(_number, _refused),
    "unclear": Case(_number, _unclear),
    "died": Case(_number, _died),
    "memory": Case(_number, lambda _: bytearray(b"x") * 2**26, memory=2**25),
    "code": Case(_number, _code),
    "hang": Case(_number, _slow, seconds=0.5),
}


@pytest.mark.parametrize("name", ["unclear", "died", "memory", "code", "hang"])
def test_what_an_input_must_not_do_is_noticed_and_its_input_kept(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE2_KEEP", str(tmp_path))
    failures = attack("test_hostile_harness:CASES", tries=2, names=[name], seed=3)
    assert [(failure.kind, failure.number) for failure in failures] == [(name, 0), (name, 1)]
    assert all((failure.folder / "input").is_file() and failure.folder.parent == tmp_path for failure in failures)


def test_what_is_read_and_what_is_refused_in_a_sentence_passes(capsys):
    assert attack("test_hostile_harness:CASES", tries=10, names=["read", "refused"], seed=3) == []
    assert "5 tries: 5 refused" in capsys.readouterr().out


def test_an_input_follows_from_its_seed_and_its_number(tmp_path, monkeypatch):
    def kept(seed: int) -> list[str]:
        monkeypatch.setenv("DALLE2_KEEP", str(tmp_path))
        return [
            (failure.folder / "input").read_text()
            for failure in attack("test_hostile_harness:CASES", tries=2, names=["unclear"], seed=seed)
        ]

    first = kept(1)
    assert kept(1) == first
    assert not set(kept(2)) & set(first)
