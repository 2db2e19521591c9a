"""What the edits reach on a pipeline of Shapes, judged by the scene reader.

    python benchmarks/edits.py [--pipeline shapes-tiny] [--n 200] [--only inversion,text-diff,inpainting] [--out FOLDER]

inversion: pictures of the decoder's own are inverted and drawn again in 100 steps, guidance 1; decibels of the round
trip.
text-diff: of a true picture one object changes its colour or shape; right where that changed and all else stayed.
inpainting: of a true picture one object is cut out; right where the result shows all that the caption states, kept
where no pixel outside the hole changed. Sheets of the first cases lie in the folder.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import say, show

from dalle_2.data.render import render
from dalle_2.data.shapes import fixed_scenes
from dalle_2.evaluation.edits import inpainting_cases, shows, text_diff_cases
from dalle_2.evaluation.exact_match import judge
from dalle_2.evaluation.intervals import wilson
from dalle_2.evaluation.scene_parser import parse
from dalle_2.images import from_pil, grid
from dalle_2.inference.holes import Holed
from dalle_2.inference.inpaint import inpaint
from dalle_2.inference.plans import EditSettings
from dalle_2.inference.text_diff import text_diff
from dalle_2.models.dalle2 import DALLe2
from dalle_2.paths import atomic_path
from dalle_2.pipelines.folder import load

SIDE, SHOWN = 256, 12


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--pipeline", default="shapes-tiny")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--by", choices=("direction", "prior"), help="of text diffs; by default as the command")
    parser.add_argument("--theta", type=float)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("edits"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = load(options.pipeline)
    rows = [row for name in options.only.split(",") for row in MEASURES[name](pipeline, options)]
    show(rows, {"pipeline": options.pipeline, "fingerprint": pipeline.fingerprint, "rows": rows})


def inversion(pipeline: DALLe2, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Round trips of the decoder's own pictures."""
    captions = [statement.text for _, statement in fixed_scenes("seen", min(options.n, 20))]
    decibels: list[float] = []
    began = time.perf_counter()
    for start in range(0, len(captions), 4):
        part = captions[start : start + 4]
        z_img = pipeline.embed(part, seeds=start)
        pictures = pipeline.decode(z_img, seeds=start).clamp(-1, 1)
        again = pipeline.decode(z_img, 100, start=pipeline.invert(pictures, z_img, 100), guidance=1.0).clamp(-1, 1)
        squares = (again - pictures).square().mean((1, 2, 3)).clamp(min=1e-12)
        decibels += (10 * torch.log10(4 / squares)).tolist()
        say(f"inversion: {len(decibels)} of {len(captions)}, least {min(decibels):.1f} dB")
    figure = f"{np.median(decibels):.1f} dB ({min(decibels):.1f} to {max(decibels):.1f})"
    return [line("invert and draw again, 100 steps", len(decibels), figure, began)]


def text_diffs(pipeline: DALLe2, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One object changes its colour or its shape."""
    settings = EditSettings(steps=options.steps)
    right: list[bool] = []
    shown: list[Image.Image] = []
    labels: list[str] = []
    began = time.perf_counter()
    for number, case in enumerate(text_diff_cases(options.n, options.seed)):
        before = Image.fromarray(render(case.before, SIDE))
        (made,) = text_diff(
            pipeline,
            before,
            case.source,
            case.target,
            1,
            theta=options.theta,
            by=options.by,
            seed=number,
            settings=settings,
        )
        right.append(shows(parse(np.asarray(made.image)), case.after))
        if len(shown) < 2 * SHOWN:
            shown, labels = [*shown, before, made.image], [*labels, case.source, case.target]
        progress("text diff", right, options.n)
    sheet(shown, labels, options.out / "text-diff.png")
    return [
        line(f"text diff by {made.metadata['by']}, theta {made.metadata['theta']:g}", len(right), rate(right), began)
    ]


def inpaintings(pipeline: DALLe2, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One object is cut out and painted again."""
    right: list[bool] = []
    kept: list[bool] = []
    shown: list[Image.Image] = []
    labels: list[str] = []
    began = time.perf_counter()
    for number, case in enumerate(inpainting_cases(options.n, options.seed)):
        whole = from_pil(Image.fromarray(render(case.scene, SIDE)))
        left, top, right_edge, bottom = (round(edge * SIDE) for edge in case.box)
        hole = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        hole[:, top:bottom, left:right_edge] = True
        settings = EditSettings(steps=options.steps)
        (made,) = inpaint(pipeline, Holed(whole, hole), case.statement.text, seed=number, settings=settings)
        pixels = np.asarray(made.image)
        right.append(judge(parse(pixels), case.statement).exact)
        outside = ~hole[0].numpy()
        kept.append(bool((pixels[outside] == render(case.scene, SIDE)[outside]).all()))
        if len(shown) < 2 * SHOWN:
            cut = np.where(outside[..., None], render(case.scene, SIDE), 128).astype(np.uint8)
            shown, labels = [*shown, Image.fromarray(cut), made.image], [*labels, "", case.statement.text]
        progress("inpainting", right, options.n)
    sheet(shown, labels, options.out / "inpainting.png")
    return [
        line("inpainting, right", len(right), rate(right), began),
        line("inpainting, every other pixel kept", len(kept), rate(kept), began),
    ]


MEASURES: dict[str, Callable[[DALLe2, argparse.Namespace], list[dict[str, Any]]]] = {
    "inversion": inversion,
    "text-diff": text_diffs,
    "inpainting": inpaintings,
}


def line(what: str, n: int, figure: str, began: float) -> dict[str, Any]:
    return {"what": what, "n": n, "figure": figure, "seconds each": (time.perf_counter() - began) / max(n, 1)}


def rate(hits: Sequence[bool]) -> str:
    """Per cent with the 95 % interval."""
    found = wilson(sum(hits), len(hits))
    value, low, high = (100 * (part or 0.0) for part in (found.value, found.low, found.high))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def progress(what: str, hits: Sequence[bool], count: int) -> None:
    if len(hits) % 20 == 0:
        say(f"{what}: {len(hits)} of {count}, {100 * sum(hits) / len(hits):.0f} % right")


def sheet(pictures: list[Image.Image], labels: list[str], path: Path) -> None:
    """Before and after, side by side."""
    small = [picture.resize((128, 128), Image.Resampling.LANCZOS) for picture in pictures]
    with atomic_path(path) as temporary:
        grid(small, 8, labels=labels).save(temporary, format="png")


if __name__ == "__main__":
    main()
