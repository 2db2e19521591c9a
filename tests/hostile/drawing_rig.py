"""Runs writers that get signals, see `drawings.py`, and commands that do."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

from hostile.drawings import ENDS, SIGNALS, wrong_in
from hostile.harness import TESTS

GENERATE = ("generate", "a red circle", "a blue square", "--n", "60", "--seed", "1", "--steps", "1", "--device", "cpu")


def writers(count: int, seed: int, folder: Path, *, links: bool = True) -> list[str]:
    """What went wrong in so many tries, a third of them of each signal; what they came to is printed."""
    arguments = [str(seed), "0", str(count), str(folder), str(links)]
    command = [sys.executable, "-m", "hostile.drawings", *arguments]
    done = subprocess.run(command, env=surroundings(), stdout=subprocess.PIPE, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    left = sum(1 for _ in folder.rglob(".*"))
    pictures = sum(1 for _ in folder.rglob("x*"))
    counts = dict(Counter(each["signal"] for each in said))
    came = f"{pictures} named, {left} left nameless"
    print(f"\n{len(said)} signals {counts} while pictures were written, seed {seed}: {came}")
    assert len(said) == count
    first_seen = {
        wrong: f"{each['number']} {each['signal']}: {wrong}" for each in reversed(said) for wrong in each["wrong"]
    }
    return list(first_seen.values())


def commands(count: int, seed: int, folder: Path, pipeline: Path) -> list[str]:
    """The same of whole commands, `dalle2 generate`, which draw with a tiny pipeline."""
    wrong, left = list[str](), 0
    for number in range(count):
        kind, place = SIGNALS[number % len(SIGNALS)], folder / str(number)
        place.mkdir(parents=True)
        command = [sys.executable, "-m", "dalle_2", *GENERATE, "--format", ("png", "jpg")[number // 3 % 2]]
        command += ["--pipeline", str(pipeline), "--out", str(place), "--quiet"]
        with subprocess.Popen(command, env=surroundings(), stderr=subprocess.PIPE) as process:
            while process.poll() is None and not any(place.iterdir()):
                time.sleep(0.001)
            time.sleep(Random(f"{seed}/{number}").random() * 0.3)
            process.send_signal(kind)
            said = process.communicate()[1].decode()
        if process.returncode not in (ENDS[kind], 0):
            wrong.append(f"{number} {kind.name}: it ended with {process.returncode}: {said[-500:]}")
        wrong += [f"{number} {kind.name}: {problem}" for problem in wrong_in(place)]
        left += sum(1 for _ in place.glob(".*"))
    pictures = sum(1 for _ in folder.rglob("2*.*"))
    print(f"\n{count} signals to dalle2 generate, seed {seed}: {pictures} named, {left} left nameless")
    return wrong


def surroundings() -> dict[str, str]:
    """The environment of processes that know this package and these tests."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
