"""Faults in saves, the short form: kills, broken and full disks and short writes at some operations of some saves."""

import errno
import os
from pathlib import Path

import pytest
from hostile.faults import KINDS, Disk
from hostile.saves import tries
from hostile.saving import hostile, problems
from training_rig import BATCH, trainer

from dalle_2.training import state


def test_whatever_ends_a_save_the_newest_whole_one_loads() -> None:
    said = hostile("saves", names=["state", "weights", "embeddings gone on with", "pipeline"], stride=100, seed=3)
    assert sum(line.get("tries", 0) for line in said) > 30
    assert not problems(said)


def test_a_save_that_failed_late_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note beside the state is that of the new one by then, which this very trainer has written."""
    run = trainer(tmp_path)
    run.fit(BATCH)
    replace = os.replace

    def fails(source: Path, target: Path) -> None:
        if Path(target).name == state.STATE:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        replace(source, target)

    run.train_step(run.model.noised(next(iter(run.dataloader)), run._generator()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="Input/output error"):
            run.save()
    assert state.load_state(tmp_path)["images"] == BATCH
    run.save()
    assert state.load_state(tmp_path)["images"] == 2 * BATCH


# The rig


def test_a_disk_fails_where_it_is_told_to(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = """
import sys; from pathlib import Path; from hostile.faults import Disk
disk = Disk(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]); disk.install()
with (Path(sys.argv[1]) / "x").open("wb") as file:
    try: file.write(b"1234")
    except OSError as error: print(error.errno)
print(disk.met)
"""

    def ran(at: int, kind: str) -> tuple[int, list[str], bytes]:
        path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
        command = [sys.executable, "-c", code, str(tmp_path), str(at), kind]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        )
        return done.returncode, done.stdout.split("\n")[:-1], (tmp_path / "x").read_bytes()

    assert ran(0, "kill") == (0, ["['open wb', 'write']"], b"1234")
    assert ran(2, "kill") == (-9, [], b"12")
    assert ran(2, "short")[1:] == ([str(errno.ENOSPC), "['open wb', 'write']"], b"12")
    assert ran(2, "EIO")[1:] == ([str(errno.EIO), "['open wb', 'write']"], b"")
    assert Disk(tmp_path).meet("read") is None


def test_every_operation_gets_every_fault() -> None:
    import random

    assert len({*tries(5, 1, random.Random(0))}) == 5 * len(KINDS)
    assert len({*tries(100, 10, random.Random(0))}) == 10 * len(KINDS)
