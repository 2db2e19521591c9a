"""How long a person waits at the prompt.

    python benchmarks/startup.py

`dalle2 --help` (median of ten whole processes, and whether it loaded torch or numpy) and `dalle2 generate` with
four pictures, weights read and files written included. The first run of each is dropped.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from report import say, show, spread

PROMPT = "a red circle above a blue square"
PROBE = """
import json, sys
from dalle_2.cli.main import main
main(["--help"])
print(json.dumps({name: name in sys.modules for name in ("torch", "numpy")}))
"""


def seconds(command: list[str]) -> float:
    """Wall time of a whole process. Raises RuntimeError with what the process said if it failed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - start


def timed(name: str, command: list[str], runs: int) -> dict[str, Any]:
    times = [seconds(command) for _ in range(runs + 1)][1:]
    say(f"{name}: {min(times):.2f} to {max(times):.2f} s")
    return {"what": name, "runs": runs, **{f"{key}, s": value for key, value in spread(times).items()}}


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
    arguments, extra = parser.parse_known_args()  # what isn't known goes to dalle2 generate
    rows = [timed("dalle2 --help", [sys.executable, "-m", "dalle_2", "--help"], 1 if arguments.quick else 10)]
    if not arguments.only_help:
        with tempfile.TemporaryDirectory() as folder:
            command = generate_command(folder, extra)
            rows.append(timed("dalle2 generate, 4 pictures", command, 1 if arguments.quick else 5))
    show(rows, {"prompt": PROMPT, "runs": rows, "help_loads": loaded_by_help()})


if __name__ == "__main__":
    main()
