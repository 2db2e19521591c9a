"""The README's sheets: one a kind of edit, made by a pipeline from scenes that are rendered here. Nothing is chosen.

    python benchmarks/sheets.py [--pipeline shapes-tiny] [--out dalle_2/inference/generations]
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from report import say

from dalle_2.data.render import render
from dalle_2.data.scenes import SHAPES
from dalle_2.data.shapes import fixed_scenes
from dalle_2.evaluation.edits import inpainting_cases, text_diff_cases
from dalle_2.evaluation.typographic import probe
from dalle_2.images import from_pil, grid, to_pil
from dalle_2.inference.generate import generations
from dalle_2.inference.holes import Holed
from dalle_2.inference.image_to_image import image_to_image
from dalle_2.inference.inpaint import inpaint, outpaint
from dalle_2.inference.interpolate import interpolate, interpolate_captions
from dalle_2.inference.reconstruct import reconstructions
from dalle_2.inference.rerank import reranked
from dalle_2.inference.text_diff import text_diff
from dalle_2.inference.variations import variations
from dalle_2.models.dalle2 import DALLe2
from dalle_2.paths import atomic_path
from dalle_2.pipelines.folder import load

SIDE, SHOWN, ROWS, SEED = 256, 96, 3, 7
Shown = Iterator[tuple[Image.Image, str]]


def scenes(count: int = ROWS) -> list[tuple[Image.Image, str]]:
    """Rendered pictures and their captions."""
    return [(Image.fromarray(render(scene, SIDE)), statement.text) for scene, statement in fixed_scenes("seen", count)]


def variation(pipeline: DALLe2) -> Shown:
    for image, _ in scenes():
        yield image, "given"
        yield from ((one.image, "") for one in variations(pipeline, [image], 7, seed=SEED))


def interpolation(pipeline: DALLe2) -> Shown:
    given = scenes(2 * ROWS)
    for (first, _), (second, _) in zip(given[::2], given[1::2], strict=True):
        yield from ((one.image, "") for one in interpolate(pipeline, first, second, 8, seed=SEED))
    captions = ("a red circle on white", "a large blue star on a black background")
    for one in interpolate_captions(pipeline, *captions, 8, seed=SEED):
        share = one.metadata["share"]
        yield one.image, captions[0] if share == 0 else captions[1] if share == 1 else ""


def text_difference(pipeline: DALLe2) -> Shown:
    for case in text_diff_cases(2 * ROWS, SEED):
        image = Image.fromarray(render(case.before, SIDE))
        yield image, f"given: {case.source}"
        changed = list(text_diff(pipeline, image, case.source, case.target, 3, seed=SEED))
        yield from ((one.image, case.target if one is changed[-1] else "") for one in changed)


def inpainting(pipeline: DALLe2) -> Shown:
    for case in inpainting_cases(2 * ROWS, SEED):
        whole = from_pil(Image.fromarray(render(case.scene, SIDE)))
        left, top, right, bottom = (round(edge * SIDE) for edge in case.box)
        hole = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        hole[:, top:bottom, left:right] = True
        yield to_pil(torch.where(hole, torch.zeros(()), whole)), "given"
        painted = list(inpaint(pipeline, Holed(whole, hole), case.statement.text, 3, seed=SEED))
        yield from ((one.image, case.statement.text if one is painted[0] else "") for one in painted)


def outpainting(pipeline: DALLe2) -> Shown:
    for image, caption in scenes():
        frame = Image.new("RGB", (SIDE + SIDE // 2, SIDE), "white")
        frame.paste(image, (0, 0))
        yield frame, "given"
        for seed in (SEED, SEED + 1):
            yield outpaint(pipeline, image, caption, right=SIDE // 2, seed=seed).image, caption


def drawing_over(pipeline: DALLe2) -> Shown:
    for (image, _), (_, caption) in zip(scenes(), reversed(scenes()), strict=True):
        yield image, "given"
        for strength in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
            (made,) = image_to_image(pipeline, image, caption, strength=strength, seed=SEED)
            yield made.image, f"{strength:g}: {caption}"


def reconstruction(pipeline: DALLe2) -> Shown:
    for image, _ in scenes():
        yield image, "given"
        yield from ((one.image, str(one.metadata["directions"])) for one in reconstructions(pipeline, image, seed=SEED))


def reranking(pipeline: DALLe2) -> Shown:
    for _, caption in scenes():
        made = reranked(pipeline, list(generations(pipeline, [caption] * 8, SEED)), 8)
        yield from ((one.image, f"{one.metadata['clip']:.2f} {caption if one is made[0] else ''}") for one in made)


def probing(pipeline: DALLe2) -> Shown:
    for scene, _ in fixed_scenes("seen", 2 * ROWS, objects=1):
        image, shape = Image.fromarray(render(scene, SIDE)), scene.objects[0].shape
        word = SHAPES[SHAPES.index(shape) - 1]
        found = probe(pipeline, image, word, [f"a {shape}", f"a {word}"])
        yield image, f"{found.labels[0]}: {found.before[0]:.0%}"
        yield found.attacked, f"{found.labels[0]}: {found.after[0]:.0%}"
        yield from ((one.image, "") for one in variations(pipeline, [found.attacked], 2, seed=SEED))


SHEETS: dict[str, tuple[Callable[[DALLe2], Shown], int]] = {
    "variations": (variation, 8),
    "interpolation": (interpolation, 8),
    "text-diff": (text_difference, 8),
    "inpainting": (inpainting, 8),
    "outpainting": (outpainting, 3),
    "image-to-image": (drawing_over, 8),
    "reconstruction": (reconstruction, 8),
    "rerank": (reranking, 8),
    "probe": (probing, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The README's sheets of edits.")
    parser.add_argument("--pipeline", default="shapes-tiny")
    parser.add_argument("--only", default=",".join(SHEETS))
    parser.add_argument("--out", type=Path, default=Path("dalle_2/inference/generations"))
    options = parser.parse_args()
    pipeline = load(options.pipeline)
    for name in options.only.split(","):
        draw, columns = SHEETS[name]
        shown = list(draw(pipeline))
        sizes = [(SHOWN * image.width // image.height, SHOWN) for image, _ in shown]
        small = [image.resize(size, Image.Resampling.LANCZOS) for (image, _), size in zip(shown, sizes, strict=True)]
        with atomic_path(options.out / f"{name}.jpg") as path:
            grid(small, columns, labels=[label for _, label in shown]).save(path, format="jpeg", quality=88)
        say(f"{name}: {options.out / name}.jpg")


if __name__ == "__main__":
    main()
