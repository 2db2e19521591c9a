"""Signals in trainings: what they end, goes on, and comes to the very weights of a run that nobody ended.

`python -m hostile.signals '{"tries": 400, "seed": 1}'` trains the tiny models of `training_rig` in processes that are
forked from this one, and says what it found in lines of JSON.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from training_rig import BATCH, MODELS, trainer

from dalle_2 import paths
from dalle_2.training import state
from dalle_2.training.log import TrainingLog

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SAVES = (0.5, 0.5, 0.05, 1e-9)  # seconds between two; the last at every step, so that most signals meet one
KINDS = ("prior", "decoder", "clip", "upsampler")
LONGEST = 1.2  # seconds to the end of a run, about
PATIENCE = 120.0


class Try(NamedTuple):
    """One run and what ends it."""

    kind: str
    number: int
    save_every: float
    after: float

    @classmethod
    def drawn(cls, chance: random.Random) -> "Try":
        return cls(chance.choice(KINDS), chance.choice(SIGNALS), chance.choice(SAVES), chance.uniform(0, 1.2 * LONGEST))


def trained(folder: Path, kind: str, images: int, save_every: float) -> int:
    """Goes on in a process of its own, which is returned."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        paths._clear_once.cache_clear()
        TrainingLog._writer = lambda self: None  # type: ignore[method-assign]
        run = trainer(folder, kind, save_every=save_every, log_interval=7)
        run.resume()
        run.fit(images)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        status = int(end.code or 0) or 100  # stopped, its state is saved
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def ended(process: int, patience: float = PATIENCE) -> int:
    """The status of a process, negative for a signal; it is killed if it takes too long."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGALRM


def weights(folder: Path) -> str:
    """The digest of all that a run has come to, but for the seconds that it took."""
    found = state.load_state(folder)
    assert found is not None
    whole = hashlib.sha256()
    for name in ("model", "ema", "optimizer"):
        digest_of(found[name], whole)
    return f"{found['images']} {whole.hexdigest()}"


def digest_of(value: Any, whole: Any) -> None:
    """Every tensor and number in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        whole.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for name in value:
            whole.update(str(name).encode())
            digest_of(value[name], whole)
    elif isinstance(value, list | tuple):
        for entry in value:
            digest_of(entry, whole)
    else:
        whole.update(repr(value).encode())


class Runs:
    """The whole run of each kind, and tries that are to end as it did."""

    def __init__(self, home: Path) -> None:
        self.home, self.length, self.whole = home, dict[str, int](), dict[str, str]()
        for kind in KINDS:
            assert kind in MODELS
            trainer(home / "warm" / kind, kind).fit(BATCH)  # has all loaded that the processes would load
            assert trainer(home / "warm" / kind, kind).resume()
            began = time.monotonic()
            assert ended(trained(home / "timed" / kind, kind, 40 * BATCH, 1e6)) == 0
            steps = int(40 * LONGEST / (time.monotonic() - began))
            self.length[kind] = max(steps, 20) * BATCH
            assert ended(trained(home / "whole" / kind, kind, self.length[kind], 1e6)) == 0
            self.whole[kind] = weights(home / "whole" / kind)

    def problem(self, one: Try) -> tuple[str | None, str]:
        """What went wrong, if something did, and how the run that got the signal ended."""
        folder = self.home / "work"
        shutil.rmtree(folder, ignore_errors=True)
        process = trained(folder, one.kind, self.length[one.kind], one.save_every)
        time.sleep(one.after)
        os.kill(process, one.number)
        status = ended(process)
        if status not in (0, 100, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            return f"the run that got the signal ended with {status}", str(status)
        again = ended(trained(folder, one.kind, self.length[one.kind], 1e6))
        if again != 0:
            return f"after {status} the next run ended with {again}", str(status)
        if weights(folder) != self.whole[one.kind]:
            return f"after {status} the weights are others", str(status)
        left = [path.name for path in folder.rglob(".*")]
        lines = (folder / "log.jsonl").read_text().splitlines()
        if left or not all(map(is_json, lines)):
            return f"after {status} {', '.join(left) or 'half a line in the log'} is left", str(status)
        return None, str(status)


def is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def main(arguments: dict[str, Any]) -> None:
    """Says a line for each failure and one for all."""
    torch.set_num_threads(1)
    chance, ends, began = random.Random(arguments["seed"]), Counter[str](), time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="dalle2-signals-"))
    runs = Runs(home)
    for number in range(arguments["tries"]):
        one = Try.drawn(chance)
        problem, ending = runs.problem(one)
        ends[f"{signal.Signals(one.number).name} {ending}"] += 1
        if problem is not None:
            kept_in = Path(arguments["keep"]) / f"signals-{arguments['seed']}-{number}"
            shutil.copytree(home / "work", kept_in, dirs_exist_ok=True)
            print(json.dumps({"try": number, **one._asdict(), "problem": problem, "kept": str(kept_in)}), flush=True)
    shutil.rmtree(home)
    print(json.dumps({"tries": ends.total(), "ends": dict(ends), "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
