"""Copies of changed weights: whole or not there, of what they were made of, and mapped."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dalle_2.cli.main import main
from dalle_2.copies import SWITCH, none_kept, place
from dalle_2.models.allocation import _glibc
from dalle_2.paths import kept_weights
from dalle_2.weights import kept
from dalle_2.weights.kept import Form


class Rig:
    """A part of three weights, of one source."""

    def __init__(self, home: Path) -> None:
        self.folder, self.source = home / "copies" / "fox", home / "source.bin"
        self.source.write_bytes(b"weights")
        convolution = nn.Conv2d(3, 4, 3, device="meta").to(memory_format=torch.channels_last)
        self.forms = {
            "norm": Form.of(torch.empty(5, device="meta"), torch.float32),
            "conv": Form.of(convolution.weight, torch.bfloat16),
            "wide": Form.of(torch.empty(2, 3, device="meta"), torch.bfloat16),
        }
        generator = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(form.shape, generator=generator) for name, form in self.forms.items()}
        self.made = 0

    def pieces(self) -> Iterator[Mapping[str, Tensor]]:
        self.made += 1
        yield {"wide": self.weights["wide"]}
        yield {"conv": self.weights["conv"], "norm": self.weights["norm"]}

    def kept(self, settings: str = "") -> dict[str, Tensor] | None:
        found = kept.kept(self.folder, "prior-bfloat16", [self.source], self.forms, self.pieces, settings)
        for thread in threading.enumerate():
            if thread.name.startswith("settle "):
                thread.join()
        return found

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.exists() else []


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(kept, "LEAST_BYTES", 0)
    return Rig(tmp_path)


def fits(rig: Rig, found: dict[str, Tensor] | None) -> bool:
    return found is not None and found.keys() == rig.forms.keys() and all(
        value.dtype == rig.forms[name].dtype and torch.equal(value, rig.weights[name].to(value.dtype))
        for name, value in found.items()
    )


def test_a_copy_is_made_once_and_holds_the_weights_as_they_are_wanted(rig: Rig) -> None:
    first, second = rig.kept(), rig.kept()
    assert fits(rig, first)
    assert fits(rig, second)
    assert rig.made == 1
    assert second is not None
    assert second["conv"].is_contiguous(memory_format=torch.channels_last)
    [path] = rig.files()
    assert {name: list(value.shape) for name, value in load_file(path).items()} == {
        "norm": [5], "conv": [4, 3, 3, 3], "wide": [2, 3]
    }  # fmt: skip
    assert all(value.data_ptr() % value.dtype.itemsize == 0 for value in second.values())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_it_is_mapped_from_the_start(rig: Rig) -> None:
    for _ in range(2):
        found = rig.kept()
        [path] = rig.files()
        assert found
        assert str(path) in Path("/proc/self/maps").read_text()


def test_other_sources_have_a_copy_of_their_own_and_the_older_one_goes(rig: Rig) -> None:
    rig.kept()
    older = rig.files()
    rig.weights["wide"] += 1
    os.utime(rig.source, ns=(1, 1))
    assert fits(rig, rig.kept())
    assert rig.made == 2
    assert len(rig.files()) == 1
    assert rig.files() != older


def test_other_settings_have_a_copy_of_their_own(rig: Rig) -> None:
    rig.kept()
    older = rig.files()
    assert rig.kept("heads of 64")
    assert rig.files() != older
    assert rig.kept()
    assert rig.made == 3
    assert rig.files() == older


def test_where_no_thread_can_begin_the_copy_is_settled_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(kept.Thread, "start", refuse)
    assert fits(rig, rig.kept())
    assert len(rig.files()) == 1


def test_another_dtype_is_kept_beside_it(rig: Rig) -> None:
    rig.kept()
    forms = {name: form._replace(dtype=torch.float16) for name, form in rig.forms.items()}
    kept.kept(rig.folder, "prior-float16", [rig.source], forms, rig.pieces)
    rig.kept()
    assert [path.name.rpartition("-")[0] for path in rig.files()] == ["prior-bfloat16", "prior-float16"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "other tensors"])
def test_a_damaged_copy_is_made_anew(rig: Rig, damage: str) -> None:
    rig.kept()
    [path] = rig.files()
    content = path.read_bytes()
    changed = {"truncated": content[:-1], "empty": b"", "other tensors": content.replace(b"norm", b"mron")}
    path.write_bytes(changed[damage])
    assert fits(rig, rig.kept())
    assert rig.made == 2
    assert path.read_bytes() == content


def test_what_an_interrupted_run_left_is_removed_in_time(rig: Rig) -> None:
    rig.folder.mkdir(parents=True)
    old, new = (rig.folder / f".prior-bfloat16-{name}.safetensors" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 2 * kept.FORGOTTEN,) * 2)
    rig.kept()
    assert new.exists()
    assert not old.exists()


def test_where_a_copy_can_not_be_there_is_none_and_nothing_is_left(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **named: object) -> object:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as changed:
        changed.setattr(kept, "LEAST_BYTES", 2**20)
        assert rig.kept() is None
    with monkeypatch.context() as changed:
        changed.setenv(SWITCH, "0")
        assert place(rig.source) is None
    with none_kept():
        assert place(rig.source) is None
    assert place(rig.source) is not None
    assert not rig.folder.exists()
    with monkeypatch.context() as changed:
        changed.setattr(kept.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        assert rig.kept() is None
    assert rig.made == 0
    with monkeypatch.context() as changed:
        changed.setattr(kept, "_bytes", full)
        assert rig.kept() is None
    with monkeypatch.context() as changed:
        changed.setattr(Path, "mkdir", full)
        assert rig.kept() is None
    assert rig.files() == []


def test_an_error_in_what_it_is_made_of_is_the_caller_s(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Path]] = []

    def pieces() -> Iterator[Mapping[str, Tensor]]:
        yield {"wide": rig.weights["wide"]}
        seen.append(rig.files())
        raise ZeroDivisionError

    monkeypatch.setattr(rig, "pieces", pieces)
    with pytest.raises(ZeroDivisionError):
        rig.kept()
    assert len(seen[0]) == 1
    assert rig.files() == []


def test_copies_are_listed_and_forgotten(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rig.folder = kept_weights(tmp_path / "fox")
    rig.kept()
    assert main(["models"]) == 0
    assert str(rig.folder) in capsys.readouterr().out
    (rig.folder / "mine.safetensors").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / rig.files()[-1].name).touch()
    (kept_weights() / "link").symlink_to(elsewhere)
    assert main(["models", "forget"]) == 0
    assert capsys.readouterr().out == "0.0 GB deleted\n"
    assert [path.name for path in rig.files()] == ["mine.safetensors"]
    assert len(list(elsewhere.iterdir())) == 1
    assert main(["models", "forget"]) == 0


def test_revisions_of_the_hub_have_one_place(tmp_path: Path) -> None:
    revisions = [tmp_path / "models--a--b" / "snapshots" / name for name in ("1", "2")]
    first, second = map(kept_weights, revisions)
    assert first == second
    assert first.name.startswith("models--a--b-")
    assert kept_weights(tmp_path) != kept_weights(tmp_path / "other")


GIVEN_BACK = """
import sys, torch
from contextlib import nullcontext
from dalle_2.models.allocation import freed_at_once

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10

torch.ones(2**22).sum()
before = resident()
with freed_at_once(False), freed_at_once(), freed_at_once():
    blocks = [torch.ones(2**19) for _ in range(100)]  # 2 MiB each
    full = resident() - before
    del blocks[::2]
    half = resident() - before
print(full, half)
"""


@pytest.mark.skipif(_glibc() is None, reason="only glibc is told what to do with freed memory")
def test_freed_memory_is_given_back_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    full, half = map(int, done.stdout.split())
    assert 190 < full < 230
    assert 90 < half < 130
