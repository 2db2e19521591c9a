"""Exact match of a decoder's pictures by sampler and number of steps, on fixed scenes.

    python benchmarks/samplers.py [--pipeline shapes-tiny] [--n 500] [--out FOLDER]
        [--steps 5,8,10,15,25,50,100] [--samplers ddim,dpm++2m,...] [--spacing logsnr]

The prior draws one image embedding for each caption, once; from these, and from the same start noise, every sampler
draws the pictures with every number of steps. What the decoder draws is read as it is, without upsampler, enlarged to
the 256 pixels that the scene reader takes. Beside each share stands how much more or less often the sampler is right
than DDIM with the most steps, on the same scenes, as a paired 95 % interval in points.

Leaves samplers.md, samplers.json and samplers.png in the folder. Called again with the same folder it goes on where it
stopped, and adds what is asked for in addition.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from plot import line_plot
from report import machine, say, show, table
from torch import Tensor

from dalle_2.data.captions import Statement
from dalle_2.data.dataset import to_image_tensor
from dalle_2.data.render import render
from dalle_2.data.scenes import Scene
from dalle_2.data.shapes import EVALUATION_SEED, fixed_scenes
from dalle_2.errors import UsageError
from dalle_2.evaluation.exact_match import judge
from dalle_2.evaluation.intervals import Difference, paired_difference, wilson
from dalle_2.evaluation.scene_parser import parse
from dalle_2.images import to_pils
from dalle_2.models.dalle2 import DALLe2
from dalle_2.paths import atomic_path, atomic_write_text
from dalle_2.pipelines.folder import load
from dalle_2.sampling.mean_squares import eps_mean_square
from dalle_2.sampling.sampler_names import NAMES, sampler_name
from dalle_2.sampling.spacing import Spacing

READ_AT, BATCH = 256, 20
STEPS = (5, 8, 10, 15, 25, 50, 100)
REFERENCE = "ddim"
TABLE_SCENES, TABLE_SEED = 100, 4_711  # of ddpm-analytic's mean squares

Scenes = list[tuple[Scene, Statement]]
Cells = dict[str, dict[str, Any]]


def main() -> None:
    """Draws what is missing, then writes the report."""
    options = arguments()
    pipeline = load(options.pipeline, device="auto")
    if options.spacing:
        decoder = pipeline.decoder
        decoder.settings = decoder.settings.model_copy(update={"spacing": options.spacing})
    scenes = fixed_scenes("seen", options.n, objects=2, seed=EVALUATION_SEED)
    header = {
        "pipeline": options.pipeline, "fingerprint": pipeline.fingerprint, "n": options.n,
        "spacing": pipeline.decoder.spacing, "guidance": pipeline.settings()["decoder"].guidance,
    }  # fmt: skip
    path = options.out / "samplers.json"
    cells = earlier(path, header)
    z_img = embeddings(pipeline, scenes, options.out / f"z_img-{pipeline.fingerprint[:8]}-{options.n}.npy")
    for name, steps in product(options.samplers, options.steps):
        if f"{name}/{steps}" in cells:
            continue
        if name == "ddpm-analytic" and pipeline.decoder.eps_mean_square is None:
            pipeline.decoder.eps_mean_square = mean_squares(pipeline)
        cells[f"{name}/{steps}"] = cell(pipeline, scenes, z_img, name, steps)
        atomic_write_text(path, json.dumps({"header": header, "machine": machine(), "cells": cells}))
    report(cells, header, options.out)


def arguments() -> argparse.Namespace:
    """The options. Raises UsageError for a misspelt sampler or spacing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--pipeline", default="shapes-tiny")
    parser.add_argument("--n", type=int, default=500, help="scenes")
    parser.add_argument("--out", type=Path, default=Path("samplers"))
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--samplers", default=",".join(NAMES))
    parser.add_argument("--spacing", choices=get_args(Spacing), help="of the steps, by default the decoder's own")
    options = parser.parse_args()
    options.samplers = [sampler_name(name) for name in options.samplers.split(",")]
    options.steps = sorted({int(steps) for steps in options.steps.split(",")})
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def product(samplers: list[str], steps: list[int]) -> Iterator[tuple[str, int]]:
    """What to draw, the reference first, so that an interrupted run has something to compare with."""
    yield REFERENCE, max(steps)
    yield from ((name, count) for count in reversed(steps) for name in samplers)


def earlier(path: Path, header: dict[str, Any]) -> Cells:
    """What an earlier call left. Raises UsageError where that measured something else."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["header"] != header:
        raise UsageError(f"{path} measured {found['header']}, not {header}: choose another --out")
    return found["cells"]


def batches(count: int) -> Iterator[range]:
    """Scenes at a time."""
    return (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def embeddings(pipeline: DALLe2, scenes: Scenes, path: Path) -> Tensor:
    """The image embeddings that the prior drew for the captions, once and for all."""
    if not path.exists():
        say(f"{len(scenes)} image embeddings")
        captions = [statement.text for _, statement in scenes]
        drawn = [
            pipeline.embed([captions[row] for row in rows], seeds=[EVALUATION_SEED + row for row in rows]).cpu()
            for rows in batches(len(scenes))
        ]
        with atomic_path(path) as part, part.open("wb") as file:
            np.save(file, torch.cat(drawn).numpy())
    return torch.from_numpy(np.load(path))


def mean_squares(pipeline: DALLe2) -> Tensor:
    """Of the decoder's predicted noise, on true pictures of other scenes."""
    say("the mean squares of the predicted noise")
    decoder, scenes = pipeline.decoder, fixed_scenes("seen", TABLE_SCENES, objects=2, seed=TABLE_SEED)
    pairs = []
    for rows in batches(len(scenes)):
        z_img = pipeline._encode_images([Image.fromarray(render(scenes[row][0], READ_AT)) for row in rows])
        pictures = np.stack([render(scenes[row][0], decoder.config.image_size) for row in rows])
        pairs.append((decoder.denoiser(z_img, guidance=1.0), to_image_tensor(pictures).to(pipeline.device)))
    with torch.no_grad():
        return eps_mean_square(pairs, decoder.noise_scheduler, torch.Generator().manual_seed(0), knots=25)


def cell(pipeline: DALLe2, scenes: Scenes, z_img: Tensor, name: str, steps: int) -> dict[str, Any]:
    """All scenes with one sampler and one number of steps: which are exact, the network's calls, and the seconds."""
    calls: list[int] = []
    hook = pipeline.decoder.network.register_forward_hook(lambda *_: calls.append(1))
    exact: list[bool] = []
    began = time.perf_counter()
    for rows in batches(len(scenes)):
        seeds = [EVALUATION_SEED + row for row in rows]
        drawn = pipeline.decode(z_img[list(rows)], steps, seeds=seeds, sampler=name)
        exact += [is_exact(picture, scenes[row][1]) for row, picture in zip(rows, to_pils(drawn.cpu()), strict=True)]
    hook.remove()
    seconds = time.perf_counter() - began
    say(f"{name}, {steps} steps: {100 * sum(exact) / len(exact):.1f} % exact, {seconds:.0f} s")
    per_batch = len(calls) / len(list(batches(len(scenes))))
    return {"exact": [int(hit) for hit in exact], "calls": per_batch, "seconds": seconds}


def is_exact(picture: Image.Image, statement: Statement) -> bool:
    """Whether all that the caption states is seen in the picture."""
    large = picture.resize((READ_AT, READ_AT), Image.Resampling.BICUBIC)
    return judge(parse(np.asarray(large.convert("RGB"))), statement).exact


def report(cells: Cells, header: dict[str, Any], out: Path) -> None:
    """The table, as Markdown and on the terminal, and the plot."""
    most = max(int(key.partition("/")[2]) for key in cells if key.startswith(f"{REFERENCE}/"))
    reference = cells[f"{REFERENCE}/{most}"]["exact"]
    rows = [row(key, found, reference, f"{REFERENCE} at {most}") for key, found in sorted(cells.items(), key=order)]
    atomic_write_text(out / "samplers.md", f"{table(matrix(cells, reference))}\n\n{table(rows)}\n")
    series: dict[str, list[tuple[float, float]]] = {}
    for key, found in sorted(cells.items(), key=order):
        share = 100 * sum(found["exact"]) / len(found["exact"])
        series.setdefault(key.partition("/")[0], []).append((found["calls"], share))
    title = f"Exact match of {header['pipeline']}'s decoder on {header['n']} scenes, spacing {header['spacing']}"
    picture = line_plot(
        series, title, "calls of the network a picture", "exact match in per cent", shown=(0.0, 100.0)
    )
    with atomic_path(out / "samplers.png") as path:
        picture.save(path, format="png")
    show(rows, header)


def matrix(cells: Cells, reference: list[int]) -> list[dict[str, object]]:
    """A line a sampler, a column a number of steps: the share, and the paired interval of the difference."""
    blank = dict.fromkeys(map(str, sorted({order(item)[1] for item in cells.items()})), "")
    lines: dict[str, dict[str, object]] = {}
    for key, found in sorted(cells.items(), key=order):
        name, _, steps = key.partition("/")
        low, high = (f"{100 * value:+.1f}" for value in beside(found["exact"], reference)[4:])
        share = f"{100 * sum(found['exact']) / len(found['exact']):.1f}"
        lines.setdefault(name, {"sampler": name, **blank})[steps] = f"{share} ({low} to {high})"
    return list(lines.values())


def beside(exact: list[int], reference: list[int]) -> Difference:
    """The paired difference to the reference on the same scenes."""
    return paired_difference([bool(hit) for hit in exact], [bool(hit) for hit in reference])


def order(item: tuple[str, dict[str, Any]]) -> tuple[int, int]:
    """The table's order: by sampler, then by steps."""
    name, _, steps = item[0].partition("/")
    return NAMES.index(sampler_name(name)), int(steps)


def row(key: str, found: dict[str, Any], reference: list[int], against: str) -> dict[str, object]:
    """A line of the table."""
    name, _, steps = key.partition("/")
    exact = found["exact"]
    rate = wilson(sum(exact), len(exact))
    change = beside(exact, reference)
    share, *interval = (f"{100 * (value or 0):.1f}" for value in rate[2:])
    more, *between = (f"{100 * value:+.1f}" for value in change[3:])
    return {
        "sampler": name,
        "steps": int(steps),
        "calls": f"{found['calls']:g}",
        "exact match, %": f"{share} ({' to '.join(interval)})",
        f"more than {against}, points": f"{more} ({' to '.join(between)})",
        "s a picture": f"{found['seconds'] / len(exact):.2f}",
    }


if __name__ == "__main__":
    main()
