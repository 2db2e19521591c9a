"""The decoder's guidance: exact match against diversity.

    python benchmarks/guidance.py [--pipeline shapes-tiny] [--n 100] [--each 3] [--scales 1,2,4,8] [--out FOLDER]

For each caption the prior draws `--each` image embeddings, once. From these, and from the same noise, the decoder draws
with every guidance, and the upsampler finishes the pictures. Diversity is the mean cosine distance between CLIP's
embeddings of two pictures of one caption. Leaves guidance.md and guidance.png in the folder.
"""

import argparse
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plot import line_plot
from report import say, show, table
from torch import Tensor
from torch.nn import functional as F

from dalle_2.data.captions import Statement
from dalle_2.data.shapes import EVALUATION_SEED, fixed_scenes
from dalle_2.evaluation.exact_match import judge
from dalle_2.evaluation.intervals import wilson
from dalle_2.evaluation.scene_parser import parse
from dalle_2.images import to_pils
from dalle_2.models.dalle2 import DALLe2
from dalle_2.paths import atomic_path, atomic_write_text
from dalle_2.pipelines.folder import load

SCALES = "1,1.5,2,3,4,6,8"


def main() -> None:
    """Prints the table, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--pipeline", default="shapes-tiny")
    parser.add_argument("--n", type=int, default=100, help="captions")
    parser.add_argument("--each", type=int, default=3, help="pictures of a caption")
    parser.add_argument("--scales", default=SCALES)
    parser.add_argument("--out", type=Path, default=Path("guidance"))
    options = parser.parse_args()
    pipeline = load(options.pipeline)
    statements = [statement for _, statement in fixed_scenes("seen", options.n, objects=2, seed=EVALUATION_SEED)]
    repeated = [statement for statement in statements for _ in range(options.each)]
    z_img = embeddings(pipeline, repeated)
    found = {scale: measured(pipeline, repeated, z_img, scale, options.each) for scale in scales(options.scales)}
    rows = [row(scale, one) for scale, one in found.items()]
    series = {name: [(scale, 100 * one[name]) for scale, one in found.items()] for name in ("exact", "diversity")}
    atomic_write_text(options.out / "guidance.md", f"{table(rows)}\n")
    title = f"The decoder of {options.pipeline}: {options.n} captions, {options.each} pictures each"
    with atomic_path(options.out / "guidance.png") as path:
        line_plot(series, title, "guidance", "exact match and mean distance, per cent").save(path, format="png")
    show(rows, {"pipeline": options.pipeline, "fingerprint": pipeline.fingerprint, "rows": rows})


def scales(words: str) -> list[float]:
    """The guidance scales asked for."""
    return [float(word) for word in words.split(",")]


def embeddings(pipeline: DALLe2, statements: list[Statement]) -> Tensor:
    """An image embedding for each picture, by the prior."""
    say(f"{len(statements)} image embeddings")
    size = 20
    parts = [statements[start : start + size] for start in range(0, len(statements), size)]
    drawn = [
        pipeline.embed([one.text for one in part], seeds=EVALUATION_SEED + k * size) for k, part in enumerate(parts)
    ]
    return torch.cat(drawn)


def measured(pipeline: DALLe2, statements: list[Statement], z_img: Tensor, scale: float, each: int) -> dict[str, Any]:
    """How often pictures with this guidance are exact, and how far apart those of one caption lie."""
    exact: list[bool] = []
    seen: list[Tensor] = []
    began = time.perf_counter()
    for start in range(0, len(statements), 20):
        z, wanted = z_img[start : start + 20], statements[start : start + 20]
        drawn = pipeline.decode(z, seeds=start, guidance=scale)
        images = to_pils(pipeline.upscale(drawn, z, seeds=start).cpu())
        exact += [judge(parse(np.asarray(image)), one).exact for image, one in zip(images, wanted, strict=True)]
        seen.append(pipeline._encode_images(images).cpu())
    say(f"guidance {scale:g}: {100 * sum(exact) / len(exact):.1f} % exact, {time.perf_counter() - began:.0f} s")
    groups = torch.cat(seen).unflatten(0, (-1, each))
    apart = [1 - F.cosine_similarity(groups[:, a], groups[:, b]) for a, b in combinations(range(each), 2)]
    share, distance = sum(exact) / len(exact), float(torch.stack(apart).mean())
    return {"exact": share, "hits": sum(exact), "n": len(exact), "diversity": distance}


def row(scale: float, found: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""
    rate = wilson(found["hits"], found["n"])
    share, low, high = (100 * (value or 0.0) for value in rate[2:])
    return {
        "guidance": f"{scale:g}",
        "exact match, %": f"{share:.1f} ({low:.1f} to {high:.1f})",
        "mean distance": f"{found['diversity']:.3f}",
    }


if __name__ == "__main__":
    main()
