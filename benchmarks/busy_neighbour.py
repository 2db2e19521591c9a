"""What idle threads that sleep are worth beside a busy process, and what they cost alone.

    python benchmarks/busy_neighbour.py                       # on an idle machine of two cores: under six minutes
    python benchmarks/busy_neighbour.py --works karlo pictures --alone-pairs 15 --beside-pairs 0    # the cost alone
    python benchmarks/busy_neighbour.py --setting GOMP_SPINCOUNT=2000 --setting GOMP_SPINCOUNT=20000,KMP_BLOCKTIME=1
    python benchmarks/busy_neighbour.py --quick               # the script itself: no figures

Each side is a process with its own environment that holds all its models and does what it is asked for, in turns: first
the one as OpenMP likes it ("spinning"), then each setting (by default what every command sets, dalle_2/threads.py). The
first round of each is dropped. Alone means that nothing else runs; beside, one other process keeps a core busy
(`--neighbour loop`), or torch with as many threads as here, which spin when they are idle (`--neighbour torch`).

pictures  four with the shipped pipeline in one call; its stages from the call or the stage before to their last step
training  a step of a 32-px decoder of 24 million weights, eight pictures, AdamW (sides.py, training_step.py)
karlo     a picture of a tiny Karlo with random weights, all of whose 57 steps are many small pieces of work
command   `dalle2 generate` of four pictures, the whole process (only where it is named)

A row is a work: seconds with threads that spin and with the setting, medians and ranges, alone and beside; the ratios
are of the pairs, so `cost alone` 1.02 is two per cent more; `slower beside` is what a neighbour costs with the setting.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from report import say, show

from dalle_2.threads import SPINNING, WAITING

PROMPT = "a red circle above a blue square"
WORKS = ("pictures", "training", "karlo", "command")
# OpenMP's own ways, said aloud: what is said is left alone by commands. LLVM's threads spin so long anyway, GNU's never
# read it.
BY_ITSELF = {"KMP_BLOCKTIME": "200"}
Setting = Mapping[str, str]
Times = dict[str, float]
NEIGHBOURS = {
    "loop": "while True: pass",
    "torch": "import torch\na = torch.randn(256, 256)\nwhile True: a @ a",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Threads that sleep or spin, alone and beside a busy process.")
    parser.add_argument("--works", choices=WORKS, nargs="+", default=WORKS[:-1])
    parser.add_argument("--setting", type=parsed, action="append", help="NAME=VALUE,...: instead of what commands set")
    parser.add_argument("--alone-pairs", type=int, default=7, help="the first is dropped")
    parser.add_argument("--beside-pairs", type=int, default=4, help="the first is dropped; 0 leaves the neighbour out")
    parser.add_argument("--most", type=float, default=100.0, help="seconds after which a work's pairs beside end early")
    parser.add_argument("--neighbour", choices=NEIGHBOURS, default="loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two pairs of the smallest work: a smoke test")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        answer(arguments.works, arguments.child, arguments.quick)
        return
    if arguments.quick:
        arguments.alone_pairs = arguments.beside_pairs = 2
    settings = arguments.setting or [WAITING]
    with tempfile.TemporaryDirectory() as folder:
        if "karlo" in arguments.works:
            build_karlo(Path(folder))
        rows = [row for work in arguments.works for row in measured(work, settings, Path(folder), arguments)]
    show(rows, {"neighbour": arguments.neighbour, "quick": arguments.quick, "rows": rows})


def parsed(words: str) -> Setting:
    """A setting from "NAME=VALUE,NAME=VALUE"."""
    pairs = dict(word.split("=", 1) for word in words.split(","))
    unknown = [name for name in pairs if name not in SPINNING]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(SPINNING)}")
    return pairs


# Measuring


def build_karlo(folder: Path) -> None:
    from karlo_parts import build

    build(folder, tiny=True)


def measured(
    work: str, settings: Sequence[Setting], folder: Path, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of one work: as a whole, then its parts. folder: of the tiny Karlo."""
    with ExitStack() as stack:
        sides = [stack.enter_context(side(work, setting, folder, arguments)) for setting in (BY_ITSELF, *settings)]
        say(f"{work}, alone ...")
        alone = rounds(sides, arguments.alone_pairs)
        beside: list[list[Times]] = []
        if arguments.beside_pairs:
            say(f"{work}, beside ...")
            with neighbour(arguments.neighbour, arguments.threads):
                beside = rounds(sides, arguments.beside_pairs, arguments.most)
    for number, setting in enumerate(settings, 1):
        for part in alone[0][0]:
            yield row(part, setting, column(alone, part, number), column(beside, part, number))


def rounds(sides: Sequence[Callable[[], Times]], count: int, most: float = float("inf")) -> list[list[Times]]:
    """Times of all sides, round by round without the first; at least one is kept."""
    made: list[list[Times]] = []
    end = time.monotonic() + most
    while len(made) < count and (len(made) < 2 or time.monotonic() < end):
        made.append([work() for work in sides])
    return made[1:]


def column(rounds: Sequence[Sequence[Times]], part: str, number: int) -> list[tuple[float, float]]:
    """Of each round, the seconds of the side that spins and of another one."""
    return [(times[0][part], times[number][part]) for times in rounds]


def row(
    part: str, setting: Setting, alone: Sequence[tuple[float, float]], beside: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """What the table says of one part under one setting."""
    asleep = median(b for _, b in alone)
    return {
        "work": part,
        "setting": ",".join(f"{name}={value}" for name, value in setting.items()),
        "alone, spinning": spread(a for a, _ in alone),
        "alone, set": spread(b for _, b in alone),
        "cost alone": median(b / a for a, b in alone),
        "beside, spinning": spread(a for a, _ in beside),
        "beside, set": spread(b for _, b in beside),
        "slower beside, spinning": ratio((a for a, _ in beside), median(a for a, _ in alone)),
        "slower beside, set": ratio((b for _, b in beside), asleep),
        "pairs": f"{len(alone)} and {len(beside)}",
    }


def spread(seconds: Iterator[float]) -> str:
    """Median and range, in words."""
    values = list(seconds)
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})" if values else "-"


def ratio(seconds: Iterator[float], alone: float) -> float | str:
    values = list(seconds)
    return median(values) / alone if values else "-"


@contextmanager
def neighbour(kind: str, threads: int) -> Iterator[None]:
    """Another process, busy while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOURS[kind]], env=environment(BY_ITSELF, threads))
    try:
        time.sleep(3.0)  # torch has to be loaded
        yield
    finally:
        process.kill()
        process.wait()


# Sides


def environment(setting: Setting, threads: int) -> dict[str, str]:
    """This one, with a setting of waiting threads in place of any other."""
    kept = {name: value for name, value in os.environ.items() if name not in SPINNING}
    return {**kept, **setting, "OMP_NUM_THREADS": str(threads)}


@contextmanager
def side(work: str, setting: Setting, folder: Path, arguments: argparse.Namespace) -> Iterator[Callable[[], Times]]:
    """What does a work once, under a setting."""
    if work == "command":
        with tempfile.TemporaryDirectory() as out:
            yield lambda: whole(out, environment(setting, arguments.threads))
        return
    quick = ["--quick"] if arguments.quick else []
    command = [sys.executable, __file__, "--child", str(folder), "--works", work, *quick]
    process = subprocess.Popen(
        command, env=environment(setting, arguments.threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield lambda: asked(process)
    finally:
        process.kill()
        process.wait()


def asked(process: "subprocess.Popen[str]") -> Times:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def whole(folder: str, environ: Mapping[str, str]) -> Times:
    start = time.perf_counter()
    command = [sys.executable, "-m", "dalle_2", "generate", PROMPT, "--n", "4", "--seed", "0", "--out", folder]
    subprocess.run([*command, "--quiet"], env=environ, check=True)
    return {"command": time.perf_counter() - start}


# The work


def answer(works: Sequence[str], folder: Path, quick: bool) -> None:
    """Does a work whenever a line comes, and tells its seconds; ends with the input."""
    made = {"pictures": pictures, "training": training, "karlo": lambda quick: karlo(folder, quick)}
    (name,) = works
    work = made[name](quick)
    for _ in sys.stdin:
        sys.stdout.write(f"{json.dumps(work())}\n")
        sys.stdout.flush()


def pictures(quick: bool) -> Callable[[], Times]:
    import dalle_2

    pipeline = dalle_2.load("shapes-tiny", device="cpu")
    chosen: dict[str, Any] = {"steps": 1, "candidates": 1} if quick else {}

    def work() -> Times:
        start = since = time.perf_counter()
        stages: Times = {}

        def note(stage: str, step: Any) -> None:
            nonlocal since
            if step.index + 1 == step.total:
                stages[stage] = time.perf_counter() - since
                since += stages[stage]

        pipeline.generate([PROMPT] * (1 if quick else 4), seeds=0, on_step=note, **chosen)
        return {"4 pictures": time.perf_counter() - start, **stages}

    return work


def training(quick: bool) -> Callable[[], Times]:
    from sides import build, random_batch
    from training_step import TrainingStep

    built, batch = build("ours", "prior" if quick else "decoder"), random_batch(2 if quick else 8)
    step = TrainingStep(built.model)

    def work() -> Times:
        start = time.perf_counter()
        step(lambda: built.loss(batch))
        return {"training step": time.perf_counter() - start}

    return work


def karlo(folder: Path, quick: bool) -> Callable[[], Times]:
    import dalle_2

    pipeline = dalle_2.load(folder, device="cpu", dtype="fp32")

    def work() -> Times:
        start = time.perf_counter()
        pipeline.generate([PROMPT], 1 if quick else None, seeds=0)
        return {"tiny Karlo": time.perf_counter() - start}

    return work


if __name__ == "__main__":
    main()
