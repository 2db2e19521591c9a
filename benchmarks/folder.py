"""A person's own folder: 200 captioned pictures, one command, and a pipeline that generates.

    python benchmarks/folder.py [--pictures 200] [--out FOLDER] [OPTIONS OF dalle2 train]

The pictures are rendered scenes with their captions in `.txt` files; nothing but the folder is handed over. Minutes of
both whole processes. Called again with the same `--out` it goes on where it stopped; the minutes are then that call's.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from report import say, show

from dalle_2.data.shapes import Shapes

SIZE, SEED = 256, 4_711


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Seconds from a folder of pictures to one's own.", allow_abbrev=False)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--out", type=Path, help="where folder and pipeline stay; by default they are deleted")
    arguments, extra = parser.parse_known_args()  # what isn't known goes to dalle2 train
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(arguments.out or Path(scratch), arguments.pictures, extra)
    show(rows, {"pictures": arguments.pictures, "options": extra, "runs": rows})


def measured(home: Path, count: int, extra: list[str]) -> list[dict[str, Any]]:
    """The two commands of the README's section, one after the other."""
    folder, pipeline = home / "pictures", home / "pipeline"
    prompt = write(folder, count)
    return [
        timed("dalle2 train --data FOLDER", ["train", "--data", str(folder), "--out", str(pipeline), *extra]),
        timed(
            "dalle2 generate, 4 pictures",
            ["generate", prompt, "--n", "4", "--pipeline", str(pipeline), "--out", str(home / "drawn")],
        ),
    ]


def write(folder: Path, count: int) -> str:
    """The pictures and their captions; returns the first caption."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = Shapes(SIZE, count, seed=SEED)
    for index in range(count):
        Image.fromarray(scenes.image(index, SIZE)).save(folder / f"{index:04}.png")
        (folder / f"{index:04}.txt").write_text(scenes.caption(index), encoding="utf-8")
    return scenes.caption(0)


def timed(what: str, command: list[str]) -> dict[str, Any]:
    """Runs a whole process, which may say on stderr how it gets on."""
    say(f"dalle2 {' '.join(command)}")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dalle_2", *command], check=True, stdout=subprocess.DEVNULL)
    return {"what": what, "minutes": (time.perf_counter() - start) / 60}


if __name__ == "__main__":
    main()
