"""Hostile inputs, read in child processes under limits: what hangs, dies, takes memory or isn't said in a sentence.

A `Case` makes an input from a seed and reads it. `attack` runs many of them, many to a child, so that an abort loses
one input; a child is stopped where one takes too long. An input follows from the seed, the case's name and its number.

    # tests/hostile/pictures.py
    CASES = {"png": Case(make=mutated_png, read=open_image)}

    # tests/test_hostile_pictures.py
    def test_mutated_pictures_are_read_or_refused():
        assert attack("hostile.pictures:CASES", tries=40) == []

A child imports the module, so what a case does must not depend on pytest. See `child.py` for what one does.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

TESTS = Path(__file__).parents[1]
START_SECONDS = 120  # a child's imports and first files
GOOD = ("read", "refused")
CANARY = "CANARY"  # a file of this name in an input's folder says that its code was run


@dataclass(frozen=True)
class Case:
    """A kind of input, and what reads it.

    make: writes one input into an empty folder and gives what `read` takes. read: ends well, or raises one of
    `dalle_2.errors`. memory: bytes that it may take, at most. seconds: that it may last. warm: called once before, for
    imports and for sound files to damage, which are no part of what is measured.
    """

    make: Callable[[Random, Path], Any]
    read: Callable[[Any], object]
    memory: int = 2**30
    seconds: float = 10
    warm: Callable[[], object] | None = None


class Failure(NamedTuple):
    """An input that did what it must not: `kind` is unclear, hang, died, memory or code, or unmade where a case failed
    to make it."""

    case: str
    number: int
    kind: str
    said: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.case} {self.number}: {self.kind}: {self.said[:300]} ... {self.said[-200:]!r} ({self.folder})"


@dataclass
class Tally:
    """What the inputs of one case came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0

    def add(self, outcome: str, seconds: float, memory: int) -> None:
        self.outcomes[outcome] += 1
        self.seconds, self.memory = max(self.seconds, seconds), max(self.memory, memory)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.outcomes.items()))
        return f"{self.outcomes.total():,} tries: {counts}; at most {self.seconds:.2f} s, +{self.memory / 1e6:.0f} MB"


def tries_of(row: int) -> int:
    """How many inputs a long form makes: the environment's DALLE2_TRIES, or those of its row in the table."""
    return int(os.environ.get("DALLE2_TRIES") or row)


def seed_of(default: int = 1) -> int:
    """The environment's DALLE2_SEED."""
    return int(os.environ.get("DALLE2_SEED") or default)


def attack(cases: str, tries: int, *, names: Iterable[str] | None = None, seed: int | None = None) -> list[Failure]:
    """Reads `tries` inputs, shared evenly among the cases, prints what they came to, and gives those that failed.

    cases: "module:ATTRIBUTE", a mapping from names to `Case`. names: only these of them.
    The failing inputs are kept in a folder, which is printed.
    """
    seed = seed_of() if seed is None else seed
    wanted = list(names) if names is not None else _names(cases)
    plan = [Share(name, 0, tries // len(wanted) + (place < tries % len(wanted))) for place, name in enumerate(wanted)]
    print(f"\n{cases}, {tries:,} tries, seed {seed} (DALLE2_TRIES, DALLE2_SEED)")
    tallies, failures = _attacked(cases, plan, seed)
    for name, tally in tallies.items():
        print(f"  {name}: {tally}")
    for failure in failures[:6]:
        print(f"  {failure}")
    if failures:
        print(f"{len(failures)} failed; their inputs are kept in {failures[0].folder.parent}")
    return failures


class Share(NamedTuple):
    """Which numbers of a case are yet to be tried."""

    case: str
    first: int
    last: int


def _attacked(cases: str, plan: list[Share], seed: int) -> tuple[dict[str, Tally], list[Failure]]:
    """Until nothing of the plan is left: with one child more for each that ended early."""
    tallies, failures = {share.case: Tally() for share in plan}, list[Failure]()
    with tempfile.TemporaryDirectory(prefix="dalle2-hostile-") as work:
        while plan := [share for share in plan if share.first < share.last]:
            for told in _child(cases, plan, seed, Path(work)):
                name, number = told["case"], told["number"]
                tallies[name].add(told["outcome"], told["seconds"], told["memory"])
                if told["outcome"] not in GOOD:
                    kept = _keep(Path(work), name, seed, told)
                    failures.append(Failure(name, number, told["outcome"], told["said"], kept))
                plan = [share._replace(first=number + 1) if share.case == name else share for share in plan]
    return tallies, failures


def _child(cases: str, plan: list[Share], seed: int, work: Path) -> Iterator[dict[str, Any]]:
    """What a child says of its inputs, and of the one that it ended with if it didn't come to the last."""
    arguments, errors = json.dumps({"cases": cases, "plan": plan, "seed": seed}), work / "stderr.txt"
    with errors.open("wb") as stream, _started(arguments, work, stream) as process:
        at, left, began, limits = "", {share.case: share for share in plan}, time.monotonic(), [float(START_SECONDS)]
        for line in _lines(process, limits):
            said, began = json.loads(line), time.monotonic()
            limits.append(said["limit"])
            at = said["case"]
            if said["outcome"] != "ready":
                left[at] = left[at]._replace(first=said["number"] + 1)
                yield said
        timed_out = process.poll() is None
        process.kill()
        process.wait()
    if all(share.first >= share.last for share in left.values()):
        return
    told = errors.read_text(errors="replace").strip()[-2000:]
    said = f"over {limits[-1]} s: {told}" if timed_out else f"status {process.returncode}: {told}"
    if at == "" or left[at].first >= left[at].last:
        raise RuntimeError(f"a child of {cases} could not begin: {said}")
    outcome = {"case": at, "number": left[at].first, "outcome": "hang" if timed_out else "died", "said": said}
    yield {**outcome, "seconds": time.monotonic() - began, "memory": 0}


def _started(arguments: str, work: Path, errors: Any) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(work / "home"), "XDG_CACHE_HOME": str(work / "home"), "HOME": str(work / "home"),
    }  # fmt: skip
    command = [sys.executable, "-m", "hostile.child", arguments]
    return subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=errors)


def _lines(process: subprocess.Popen[bytes], limits: list[float]) -> Iterator[bytes]:
    """Its lines, until it ends or says nothing for as long as the last of the limits, in seconds."""
    assert process.stdout is not None
    stream, rest = process.stdout.fileno(), b""
    while select.select([stream], [], [], limits[-1])[0]:
        piece = os.read(stream, 2**16)
        if not piece:
            process.wait()
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _keep(work: Path, name: str, seed: int, outcome: dict[str, Any]) -> Path:
    """The input's folder, moved to where it stays, with what was said of it."""
    folder = _kept_in() / f"{name.replace('/', '-')}-{seed}-{outcome['number']}"
    shutil.rmtree(folder, ignore_errors=True)
    source = work / "inputs" / str(outcome["number"])
    if source.is_dir():
        shutil.move(source, folder)
    folder.mkdir(exist_ok=True)
    (folder / "said.txt").write_text(f"{outcome['outcome']}: {outcome['said']}\n", errors="replace")
    return folder


def _kept_in() -> Path:
    """The environment's DALLE2_KEEP, or a folder of this process among the temporary ones."""
    named = os.environ.get("DALLE2_KEEP") or f"{tempfile.gettempdir()}/dalle2-hostile-kept-{os.getpid()}"
    Path(named).mkdir(parents=True, exist_ok=True)
    return Path(named)


def _names(cases: str) -> list[str]:
    """The cases' names, asked of a child, so that this process need not load what they load."""
    with tempfile.TemporaryDirectory(prefix="dalle2-hostile-") as work:
        errors = Path(work) / "stderr.txt"
        with errors.open("wb") as stream, _started(json.dumps({"cases": cases}), Path(work), stream) as process:
            told = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"{cases} could not be imported: {errors.read_text()}")
    return list(json.loads(told))
