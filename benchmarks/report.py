"""How every benchmark here speaks: a Markdown table, then one line of JSON."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def show(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
    """Prints the table, and as the last line the whole result."""
    sys.stdout.write(f"{table(rows)}\n\n{json.dumps({**result, 'machine': machine()})}\n")


def say(sentence: str) -> None:
    """Progress, apart from the result."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows under the first row's names, figures with three digits."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """Where a figure comes from."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": [round(value, 2) for value in _load()],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _load() -> tuple[float, ...]:
    return os.getloadavg() if hasattr(os, "getloadavg") else ()
