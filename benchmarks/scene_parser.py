"""How reliably the scene parser reads rendered scenes: clean, blurred and noisy, shuffled captions, and rubbish.

    python benchmarks/scene_parser.py [--scenes 10000]
"""

import argparse
import random
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFilter
from report import say, show

from dalle_2.data.scenes import Scene, clearly_related, relation
from dalle_2.data.shapes import Shapes
from dalle_2.evaluation.exact_match import judge
from dalle_2.evaluation.intervals import Rate, wilson
from dalle_2.evaluation.scene_parser import Unreadable, parse

SIZE, SIGMA, NOISE = 256, 1.0, 5.0


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scenes", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=90_210)
    options = arguments.parse_args()
    rates = measured(options.scenes, options.seed)
    show([row(name, rate) for name, rate in rates.items()], {name: rate._asdict() for name, rate in rates.items()})


def measured(count: int, seed: int) -> dict[str, Rate]:
    """The rate of every question."""
    scenes, noise = Shapes(SIZE, count, seed=seed), np.random.default_rng(seed)
    clean = degraded = 0
    read, began = [], time.monotonic()
    for index in range(count):
        scene, statement = scenes.scene(index)
        picture = scenes.image(index, SIZE)
        found = parse(picture)
        clean += same(found, scene)
        degraded += same(parse(spoiled(picture, noise)), scene)
        read.append((found, statement))
        if index % 1000 == 999:
            say(f"{index + 1:,} scenes in {time.monotonic() - began:.0f} s")
    captions = [statement for _, statement in read]
    random.Random(seed).shuffle(captions)
    pairs = list(zip(read, captions, strict=True))
    others = [(found, other) for (found, own), other in pairs if other is not own and len(own.objects) == 2]
    shuffled = [judge(found, other).exact for found, other in others]
    rubbish = [isinstance(parse(picture), Unreadable) for picture in senseless(min(count, 200), noise)]
    return {
        "clean, right": wilson(clean, count),
        "blur and noise, right": wilson(degraded, count),
        "captions shuffled, exact match": wilson(sum(shuffled), len(shuffled)),
        "noise and gradients, unreadable": wilson(sum(rubbish), len(rubbish)),
    }


def same(found: Scene | Unreadable, scene: Scene) -> bool:
    """Whether everything but the exact place and radius was read right."""
    if isinstance(found, Unreadable) or found.background != scene.background:
        return False
    return described(found) == described(scene) and relations_hold(found, scene)


def described(scene: Scene) -> list[tuple[str, str, str]]:
    """What the objects are; kinds differ within a scene, so places need no comparing."""
    return sorted((thing.colour, thing.shape, thing.size) for thing in scene.objects)


def relations_hold(found: Scene, scene: Scene) -> bool:
    """Whether every clear relation of the scene was found again; kinds tell the objects apart."""
    places = {thing.kind: thing for thing in found.objects}
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b and clearly_related(a, b)]
    return all(relation(places[a.kind], places[b.kind]) == relation(a, b) for a, b in pairs)


def spoiled(picture: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Gaussian blur of SIGMA pixels, then noise of NOISE levels."""
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(SIGMA)), dtype=np.float32)
    return np.clip(blurred + NOISE * noise.standard_normal(blurred.shape), 0, 255).astype(np.uint8)


def senseless(count: int, noise: np.random.Generator) -> Iterator[np.ndarray]:
    """Pictures that show no scene: white noise, coarse noise, gradients."""
    ramp = np.linspace(0, 1, SIZE)[None, :, None]
    for index in range(count):
        if index % 3 == 2:
            ends = noise.uniform(0, 255, (2, 3))
            yield (np.broadcast_to(ends[0] * ramp + ends[1] * (1 - ramp), (SIZE, SIZE, 3))).astype(np.uint8)
            continue
        side = SIZE if index % 3 else 8
        coarse = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
        yield np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def row(name: str, rate: Rate) -> dict[str, str]:
    """One line of the table."""
    interval = f"{100 * (rate.low or 0):.2f} to {100 * (rate.high or 0):.2f}"
    return {"pictures": name, "n": str(rate.n), "rate": f"{100 * (rate.value or 0):.2f} %", "95 % interval": interval}


if __name__ == "__main__":
    main()
