"""Whether torch.compile can do its work here, found before anything is drawn."""

import os
import shutil
import sys
from importlib.util import find_spec

import torch

from dalle_2.errors import UsageError

# What compiles C++ where CXX says nothing, by the start of sys.platform.
COMPILERS = {"win32": "cl", "darwin": "clang++"}
ELSEWHERE = "g++"


def require_compiler(device: torch.device) -> None:
    """Raises UsageError where what torch.compile needs for that device is missing.

    For a processor it writes C++, and needs a compiler; for a CUDA device it writes for Triton, and needs that package,
    which itself needs a C compiler where it brings none along; what it writes for a Mac's GPU the system compiles.
    """
    if device.type == "cpu":
        _require(os.environ.get("CXX") or _usual(), "C++", "CXX", device)
    elif device.type == "cuda":
        if find_spec("triton") is None:
            raise UsageError(
                f"--compile on {device} needs the package triton, which isn't installed: install it, or draw without "
                "--compile (compiled=False)"
            )
        if sys.platform != "win32":
            found = (name for name in ("gcc", "clang") if shutil.which(name))
            _require(os.environ.get("CC") or next(found, "gcc"), "C", "CC", device)


def _usual() -> str:
    return next((name for system, name in COMPILERS.items() if sys.platform.startswith(system)), ELSEWHERE)


def _require(command: str, language: str, variable: str, device: torch.device) -> None:
    if shutil.which(command) is None:
        raise UsageError(
            f"--compile on {device} needs a {language} compiler, and there is no {command} here: install one, name "
            f"yours by {variable}, or draw without --compile (compiled=False)"
        )
