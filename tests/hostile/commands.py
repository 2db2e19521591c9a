"""Signals to `dalle2 train` itself, one lane or two: the next command comes to the pipeline of one that nobody ended.

`python -m hostile.commands '{"tries": 24, "seed": 1}'` says what it found in lines of JSON.
"""

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
from safetensors.torch import load_file
from test_train_cli import minuscule
from training_rig import BATCH, trainer

from dalle_2 import paths
from dalle_2.cli.main import main as dalle2
from hostile.signals import SIGNALS, ended

PATIENCE = 300.0
SAID = "said.txt"


class Try(NamedTuple):
    """One command and what ends it. group: all of its processes get the signal, as from a terminal."""

    number: int
    group: bool
    lanes: int
    after: float


def command(folder: Path, lanes: int) -> int:
    """Runs the command in a process of its own, which is returned; what it says goes to a file beside its folder."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        said = os.open(folder.parent / SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        paths._clear_once.cache_clear()
        torch.set_num_threads(1)  # as many in one lane as in two, or sums have another order
        length = [word for stage in ("clip", "prior", "draft", "decoder", "upsampler") for word in often(stage)]
        options = ["--out", str(folder), "--device", "cpu", "--lanes", str(lanes)]
        status = dalle2(["train", "shapes-micro", *options, *minuscule(), *length])
    finally:
        os._exit(status)


def often(stage: str) -> list[str]:
    """Longer than in the tests, and saved twice a second."""
    return ["--set", f"{stage}.run.images=640", "--set", f"{stage}.run.save_every=0.5"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that a pipeline holds."""
    files = sorted(folder.glob("*.safetensors"))
    return {f"{path.stem}.{name}": value for path in files for name, value in load_file(path).items()}


class Commands:
    """Tries that are to end as the whole command did."""

    def __init__(self, home: Path) -> None:
        trainer(home / "warm").fit(BATCH)
        self.home, began = home, time.monotonic()
        assert ended(command(home / "whole", 2), PATIENCE) == 0, (home / SAID).read_text()
        self.seconds, self.whole = time.monotonic() - began, tensors(home / "whole")
        assert len(self.whole) > 100

    def drawn(self, chance: random.Random) -> Try:
        """A signal at any moment of a run, and a little beyond."""
        return Try(chance.choice(SIGNALS), chance.random() < 0.5, chance.choice((1, 2, 2)), self._moment(chance))

    def _moment(self, chance: random.Random) -> float:
        return chance.uniform(0.1, 1.05 * self.seconds)

    def problem(self, one: Try) -> tuple[str | None, str]:
        """What went wrong, if something did, and how the command that got the signal ended."""
        folder = self.home / "work"
        shutil.rmtree(folder, ignore_errors=True)
        process = command(folder, one.lanes)
        time.sleep(one.after)
        send = os.killpg if one.group else os.kill
        send(process, one.number)
        status = ended(process, PATIENCE)
        said = (self.home / SAID).read_text()
        if (wrong := misreported(one.number, status, said, folder)) is not None:
            return wrong, str(status)
        again = ended(command(folder, one.lanes), PATIENCE)
        if again != 0:
            return f"after {status} the same command ended with {again}: {(self.home / SAID).read_text()[-500:]}", ""
        came = tensors(folder)
        differing = [name for name in self.whole if not torch.equal(self.whole[name], came[name])]
        left = [str(path) for path in folder.rglob(".*") if not path.name.startswith(".lock")]
        if differing or left or came.keys() != self.whole.keys():
            return f"after {status} {len(differing)} tensors differ, and {left} is left", str(status)
        return None, str(status)


def misreported(number: int, status: int, said: str, folder: Path) -> str | None:
    """What is wrong with a status and the last lines, if something is."""
    if "Traceback" in said:
        return f"a traceback: {said[-1500:]}"
    if number == signal.SIGKILL:
        return None if status in (0, -signal.SIGKILL) else f"a kill ended it with {status}"
    if status == 0 and not (folder / "pipeline.json").exists() and ", not finished: " not in said.splitlines()[-1]:
        return f"status 0, without a pipeline or a word: {said[-500:]}"
    known = {signal.SIGTERM: (0, 143), signal.SIGINT: (0, 130)}[signal.Signals(number)]
    return None if status in known else f"status {status}: {said[-1500:]}"


def main(arguments: dict[str, Any]) -> None:
    """Says a line for each failure and one for all."""
    chance, ends, began = random.Random(arguments["seed"]), Counter[str](), time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="dalle2-commands-"))
    commands = Commands(home)
    for number in range(arguments["tries"]):
        one = commands.drawn(chance)
        problem, ending = commands.problem(one)
        ends[f"{signal.Signals(one.number).name} {ending}"] += 1
        if problem is not None:
            kept_in = Path(arguments["keep"]) / f"commands-{arguments['seed']}-{number}"
            shutil.copytree(home / "work", kept_in, dirs_exist_ok=True)
            print(json.dumps({"try": number, **one._asdict(), "problem": problem, "kept": str(kept_in)}), flush=True)
    shutil.rmtree(home)
    print(json.dumps({"tries": ends.total(), "ends": dict(ends), "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
