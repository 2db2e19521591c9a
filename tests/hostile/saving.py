"""Runs `saves.py` in a process of its own, and reads what it says."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def hostile(module: str, **arguments: Any) -> list[dict[str, Any]]:
    """The lines of JSON that a module of this folder says, which is run with these arguments; each is also printed."""
    keep = Path(os.environ.get("DALLE2_KEEP") or Path(tempfile.gettempdir()) / f"dalle2-hostile-kept-{os.getpid()}")
    given = {**arguments, "keep": str(keep)}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    print(f"\nhostile.{module} {json.dumps(given)}", flush=True)
    command = [sys.executable, "-m", f"hostile.{module}", json.dumps(given)]
    said = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line.rstrip()}", flush=True)
            said.append(json.loads(line))
    assert process.returncode == 0, f"hostile.{module} ended with status {process.returncode}"
    return said


def problems(said: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tries that did what they must not."""
    return [line for line in said if "problem" in line]
