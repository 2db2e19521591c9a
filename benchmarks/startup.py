"""How long a person waits at the prompt.

    python benchmarks/startup.py
    python benchmarks/startup.py --avx2      # as on a processor without AVX-512 and AMX

`dalle2 --help` (median of ten whole processes, and whether it loaded torch or numpy); `dalle2 generate` with four
pictures, weights read and files written included, and of it all that was no drawing, by its own last line and the end
of the process; an edit likewise; `dalle2 train shapes-micro` to the line that says its first stage has begun. The first
run of each is dropped.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from report import say, show, spread

Clock = Callable[[list[str]], tuple[float, float]]

PROMPT = "a red circle above a blue square"
PROBE = """
import json, sys
from dalle_2.cli.main import main
main(["--help"])
print(json.dumps({name: name in sys.modules for name in ("torch", "numpy")}))
"""


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
DRAWN = re.compile(r"([\d.]+) drawing")
BEGUN = "clip: from the start"


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall time of a whole process, and of that all but drawing.

    Raises RuntimeError with what the process said if it failed.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    drawn = DRAWN.search(done.stderr)
    return whole, whole - float(drawn[1]) if drawn else whole


def until_begun(command: list[str]) -> tuple[float, float]:
    """Wall time until a training says that its first stage has begun; the process is ended then."""
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        said = next((line for line in process.stderr if line.startswith(BEGUN)), None)
        taken = time.perf_counter() - start
        process.kill()
    if said is None:
        raise RuntimeError(f"{' '.join(command)} never said {BEGUN!r}")
    return taken, taken


def timed(name: str, command: list[str], runs: int, clock: Clock = seconds) -> dict[str, Any]:
    times = [clock(command) for _ in range(runs + 1)][1:]
    whole = [taken for taken, _ in times]
    say(f"{name}: {min(whole):.2f} to {max(whole):.2f} s")
    figures = {f"{key}, s": value for key, value in spread(whole).items()}
    return {"what": name, "runs": runs, **figures, "all but drawing, s": median(rest for _, rest in times)}


def loaded_by_help() -> dict[str, bool]:
    """Whether `dalle2 --help` loads the two large packages."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def generate_command(folder: str, extra: list[str]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "dalle_2",
        "generate",
        PROMPT,
        "--n",
        "4",
        "--seed",
        "0",
        "--out",
        folder,
        *extra,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of whole dalle2 processes.", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="one run of each: a smoke test, not a figure")
    parser.add_argument("--only-help", action="store_true", help="leave out dalle2 generate")
    parser.add_argument("--avx2", action="store_true", help="have torch use no further instructions")
    arguments, extra = parser.parse_known_args()  # what isn't known goes to dalle2 generate
    os.environ.update(AVX2 if arguments.avx2 else {})
    rows = [timed("dalle2 --help", [sys.executable, "-m", "dalle_2", "--help"], 1 if arguments.quick else 10)]
    if not arguments.only_help:
        with tempfile.TemporaryDirectory() as folder:
            command = generate_command(folder, extra)
            runs = 1 if arguments.quick else 5
            rows.append(timed("dalle2 generate, 4 pictures", command, runs))
            picture = str(next(Path(folder).glob("*.png")))
            dalle2 = [sys.executable, "-m", "dalle_2"]
            command = [*dalle2, "variations", picture, "--n", "1", "--out", folder]
            rows.append(timed("dalle2 variations, 1 picture", command, runs))
            command = [*dalle2, "train", "shapes-micro", "--lanes", "1", "--out", f"{folder}/micro"]
            rows.append(timed("dalle2 train shapes-micro, to its first stage", command, runs, until_begun))
    show(rows, {"prompt": PROMPT, "avx2": arguments.avx2, "runs": rows, "help_loads": loaded_by_help()})


if __name__ == "__main__":
    main()
