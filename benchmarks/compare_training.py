"""Training speed of both sides, as BENCHMARKS.md reports it.

    .venv-peers/bin/python benchmarks/compare_training.py

The two sides alternate as separate processes in one environment; the first pair is dropped, and each of the
others gives one ratio. Beside the median ratio and its range stand both sides' GFLOP/s and those of the reference
kernel, measured in the same minute. Nothing else should run on the machine.

The dtype "default" is what `dalle2 train` would choose for ours on this processor, and float32 for theirs. Where the
processor has no bf16 of its own, that is float32 on both sides, and the two rows of a stage repeat each other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import say, show, spread
from sides import STAGES

SCRIPT = Path(__file__).with_name("train_speed.py")
Result = dict[str, Any]


def run_side(stage: str, side: str, dtype: str, arguments: argparse.Namespace) -> Result:
    """One process, one measurement."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(SCRIPT),
        "--stage",
        stage,
        "--side",
        side,
        "--dtype",
        dtype,
    ]
    command += ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
    command += ["--batch", str(arguments.batch)] if arguments.batch else []
    command += ["--quick"] if arguments.quick else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_pairs(stage: str, dtype: str, arguments: argparse.Namespace) -> list[dict[str, Result]]:
    """The pairs that count; the side that goes first changes from pair to pair."""
    pairs = []
    for number in range(arguments.pairs + 1):
        order = ("ours", "theirs") if number % 2 else ("theirs", "ours")
        pair = {side: run_side(stage, side, dtype, arguments) for side in order}
        note = "" if number else " (dropped)"
        say(f"{stage} {dtype}, pair {number} of {arguments.pairs}: {ratio(pair):.2f} times{note}")
        pairs.append(pair)
    return pairs[1:]


def ratio(pair: dict[str, Result]) -> float:
    """How many times as fast as theirs ours is."""
    return pair["ours"]["pictures_per_second"] / pair["theirs"]["pictures_per_second"]


def row(stage: str, dtype: str, pairs: list[dict[str, Result]]) -> dict[str, Any]:
    ours, theirs = ({key: typical(pairs, side, key) for key in FIGURES} for side in ("ours", "theirs"))
    ratios = spread([ratio(pair) for pair in pairs])
    reference = {pairs[0][side]["dtype"]: typical(pairs, side, "reference_gflops") for side in ("theirs", "ours")}
    return {
        "stage": stage,
        "dtype, ours / theirs": f"{pairs[0]['ours']['dtype']} / {pairs[0]['theirs']['dtype']}",
        "ratio (range)": f"{ratios['median']:.2f} ({ratios['low']:.2f} to {ratios['high']:.2f})",
        "pictures/s": both(ours, theirs, "pictures_per_second"),
        "GFLOP/s": both(ours, theirs, "gflops"),
        "reference GFLOP/s": ", ".join(f"{value:.0f} {name}" for name, value in reference.items()),
        "parameters, M": f"{ours['parameters'] / 1e6:.2f} / {theirs['parameters'] / 1e6:.2f}",
        "GFLOP a picture": both(ours, theirs, "gflop_per_picture"),
        "batch": pairs[0]["ours"]["batch"],
    }


FIGURES = ("pictures_per_second", "gflops", "parameters", "gflop_per_picture")


def typical(pairs: list[dict[str, Result]], side: str, key: str) -> float:
    return statistics.median(pair[side][key] for pair in pairs)


def both(ours: Result, theirs: Result, key: str) -> str:
    return f"{ours[key]:.4g} / {theirs[key]:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed against dalle2-pytorch.")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "default"], help="float32, bfloat16, default")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="least time a process measures for")
    parser.add_argument("--batch", type=int, help="of both sides; by default 16 for decoders, 64 for priors")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one pair of one small step: a smoke test, not a figure")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs = 1
    runs = {(s, d): run_pairs(s, d, arguments) for s in arguments.stages for d in arguments.dtypes}
    rows = [row(stage, dtype, pairs) for (stage, dtype), pairs in runs.items()]
    results = [
        {"stage": s, "dtype": d, "ratio": spread([ratio(p) for p in pairs]), "pairs": pairs}
        for (s, d), pairs in runs.items()
    ]
    show(rows, {"results": results, "threads": arguments.threads})


if __name__ == "__main__":
    main()
