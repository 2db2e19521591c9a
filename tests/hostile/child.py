"""The process that reads hostile inputs: `python -m hostile.child '{"cases": "module:ATTRIBUTE", ...}'`.

It says a line of JSON of each input: what came of it, in which time, and with how much memory at most. What it prints
otherwise goes to standard error.
"""

import faulthandler
import importlib
import json
import os
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from dalle_2.errors import Dalle2Error
from hostile.harness import CANARY, START_SECONDS, Case

ROOM = 8 * 2**30  # of addresses, beyond those of the start: what keeps this machine alive, not what is tested


class Outcome(NamedTuple):
    """What came of one input."""

    outcome: str
    said: str


def main(arguments: dict[str, Any]) -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.enable()
    module, _, attribute = arguments["cases"].partition(":")
    cases = getattr(importlib.import_module(module), attribute)
    if "plan" not in arguments:
        said.write(json.dumps(list(cases)))
        return
    _limited()
    for name, first, last in arguments["plan"]:
        case: Case = cases[name]
        if case.warm:
            case.warm()
        said.write(json.dumps({"case": name, "outcome": "ready", "limit": case.seconds}) + "\n")
        for number in range(first, last):
            random = Random(f"{arguments['seed']}/{name}/{number}")
            faulthandler.dump_traceback_later(0.9 * case.seconds)  # for whoever is told of a hang
            told = _tried(case, random, Path("inputs") / str(number))
            faulthandler.cancel_dump_traceback_later()
            limit = case.seconds if number + 1 < last else START_SECONDS
            said.write(json.dumps({"case": name, "number": number, "limit": limit, **told}) + "\n")


def _limited() -> None:
    used = _status("VmSize")
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _tried(case: Case, random: Random, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    try:
        given = case.make(random, folder.resolve())
    except Exception:  # a fault of the case, not of what it tries
        return {"outcome": "unmade", "said": traceback.format_exc(), "seconds": 0.0, "memory": 0}
    before, began = _marked(), time.monotonic()
    outcome = _read(case, given)
    seconds, memory = time.monotonic() - began, _status("VmHWM") - before
    if outcome.outcome in ("read", "refused"):
        outcome = _checked(outcome, case, folder, seconds, memory)
    if outcome.outcome in ("read", "refused"):
        shutil.rmtree(folder, ignore_errors=True)
    return {**outcome._asdict(), "seconds": seconds, "memory": max(memory, 0)}


def _read(case: Case, given: Any) -> Outcome:
    try:
        case.read(given)
    except Dalle2Error as error:
        text = str(error)
        clear = text.strip() and "\n" not in text and len(text) < 4000
        return Outcome("refused" if clear else "unclear", text[:2000])
    except BaseException as error:  # SystemExit and the panics of other languages are no sentences, either
        return Outcome("unclear", f"{type(error).__name__}: {error}"[:2000] + _place(error))
    return Outcome("read", "")


def _place(error: BaseException) -> str:
    """Where it was raised, of our files the innermost."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if f"{os.sep}dalle_2{os.sep}" in name:
            place = f" at {name.rpartition(f'{os.sep}dalle_2{os.sep}')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _checked(outcome: Outcome, case: Case, folder: Path, seconds: float, memory: int) -> Outcome:
    if (folder / CANARY).exists():
        return Outcome("code", "a line of the input was run")
    if memory > case.memory:
        return Outcome("memory", f"+{memory / 1e6:.0f} MB, and then {outcome.outcome}: {outcome.said}")
    if seconds > case.seconds:
        return Outcome("hang", f"{seconds:.1f} s, and then {outcome.outcome}: {outcome.said}")
    return outcome


def _marked() -> int:
    """What this process has in memory; its highest mark is taken back to that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _status("VmRSS")


def _status(name: str) -> int:
    """A line of this process's status, in bytes; without one, the highest mark that there has been."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0 if name == "VmSize" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
