"""Signals at random instants while pictures are written: under a picture's name lies a whole picture or nothing.

`python -m hostile.drawings SEED FIRST LAST FOLDER LINKS` forks a writer for each try and says a line of JSON of each. A
writer is the command line itself, `dalle_2.cli.main`, around the package's own saving of small pictures.
"""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

import dalle_2.cli.show
from dalle_2.cli.main import main
from dalle_2.inference.saving import save_new
from dalle_2.metadata import read_metadata

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
HANGS = 30  # seconds
INSTANTS = 0.03  # seconds from the first picture on, in which a signal comes


def tries(seed: int, numbers: range, folder: Path, links: bool) -> None:
    """links: whether the file system is to know any."""
    for number in numbers:
        random = Random(f"{seed}/{number}")
        kind, place = SIGNALS[number % len(SIGNALS)], folder / str(number // 20)  # some writers after each other in one
        end = _tried(kind, random.random() * INSTANTS, place, links)
        print(json.dumps({"number": number, "signal": kind.name, "wrong": [*_wrong_end(kind, end), *wrong_in(place)]}))


def _tried(kind: signal.Signals, after: float, folder: Path, links: bool) -> int:
    """The status of a writer that got the signal so many seconds after its first picture."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, told = os.pipe()
    process = os.fork()
    if not process:
        os.close(ready)
        os._exit(_write(folder, told, links))
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    time.sleep(after)
    os.kill(process, kind)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _write(folder: Path, told: int, links: bool) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    signal.alarm(HANGS)
    if not links:
        os.link = _no_links
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (24, 24, 3), np.uint8)) for k in range(4)]

    def show() -> None:
        for number in range(10**6):
            save_new(pictures[number % 4], folder, "x", ("jpg", "png")[number % 2], {"seed": number})
            if not number:
                os.write(told, b".")

    dalle_2.cli.show.show = show  # type: ignore[assignment]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return main(["show"])


def _no_links(*_: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def _wrong_end(kind: signal.Signals, end: int) -> list[str]:
    return [] if end == ENDS[kind] else [f"it ended with {end}"]


def wrong_in(folder: Path) -> list[str]:
    """What is no whole picture under a picture's name."""
    return [
        f"{path.parent.name}/{path.name}: {problem}" for path in folder.glob("[!.]*") if (problem := _problem(path))
    ]


def _problem(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.load()
        if read_metadata(path) is None:
            return "it says nothing"
    except Exception as error:
        return f"{path.stat().st_size} bytes: {error}"
    return ""


if __name__ == "__main__":
    tries(int(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), Path(sys.argv[4]), sys.argv[5] == "True")
