"""The two priors of a pipeline side by side: cosine to the true embedding, exact match, seconds.

    python benchmarks/priors.py [--pipeline shapes-tiny] [--n 500] [--candidates 1,16]

Both draw for the same captions with the same seeds; the true embedding is that of the scene of which the caption was
made, and it leaves much open. Decoder and upsampler finish the pictures. With one candidate the
embedding is the prior's own; of several the best goes on, as CLIP saw it in its draft.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import say, show
from torch.nn import functional as F

from dalle_2.data.render import render
from dalle_2.data.shapes import EVALUATION_SEED, fixed_scenes
from dalle_2.evaluation.exact_match import judge
from dalle_2.evaluation.intervals import wilson
from dalle_2.evaluation.scene_parser import parse
from dalle_2.images import to_pils
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.parts import PriorName
from dalle_2.pipelines.folder import load

BATCH = 20


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--pipeline", default="shapes-tiny")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--candidates", default="1,16")
    options = parser.parse_args()
    pipeline = load(options.pipeline)
    names: tuple[PriorName, ...] = ("diffusion", "ar")
    rows = [
        row(pipeline, name, int(count), options.n) for count in options.candidates.split(",") for name in names
    ]
    show(rows, {"pipeline": options.pipeline, "fingerprint": pipeline.fingerprint, "rows": rows})


def row(pipeline: DALLe2, name: PriorName, candidates: int, count: int) -> dict[str, Any]:
    """A line of the table."""
    scenes = fixed_scenes("seen", count, objects=2, seed=EVALUATION_SEED)
    exact: list[bool] = []
    cosines: list[torch.Tensor] = []
    seconds = 0.0
    for start in range(0, count, BATCH):
        part = scenes[start : start + BATCH]
        captions = [statement.text for _, statement in part]
        began = time.perf_counter()
        z = pipeline.embed(captions, seeds=start, prior=name, candidates=candidates)
        seconds += time.perf_counter() - began
        true = pipeline._encode_images([Image.fromarray(render(scene, 256)) for scene, _ in part])
        cosines.append(F.cosine_similarity(z, true))
        images = to_pils(pipeline.upscale(pipeline.decode(z, seeds=start), z, seeds=start).cpu())
        exact += [judge(parse(np.asarray(image)), said).exact for image, (_, said) in zip(images, part, strict=True)]
    say(f"{name}, {candidates} candidates: {sum(exact)} of {count} exact")
    share, low, high = (100 * (value or 0.0) for value in wilson(sum(exact), count)[2:])
    return {
        "prior": name,
        "candidates": candidates,
        "cosine": float(torch.cat(cosines).mean()),
        "exact match, %": f"{share:.1f} ({low:.1f} to {high:.1f})",
        "seconds an embedding": seconds / count,
    }


if __name__ == "__main__":
    main()
