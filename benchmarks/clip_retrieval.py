"""What a CLIP that was trained on scenes can tell apart.

    python benchmarks/clip_retrieval.py [--pipeline shapes-tiny] [--scenes 400]

Two objects, scenes that no training saw. First the share of pictures whose own caption is the nearest of all; then, for
each kind of change, the share of pictures that are nearer to their own caption than to one of a scene changed so.
"""

import argparse
import random
from collections import Counter, defaultdict
from operator import attrgetter

import torch
from PIL import Image
from report import say, show

from dalle_2.data.captions import describe
from dalle_2.data.render import render
from dalle_2.data.scenes import Scene, differences, mutate
from dalle_2.data.shapes import fixed_scenes
from dalle_2.evaluation.intervals import Rate, wilson
from dalle_2.pipelines.folder import load

SEED, TRIES = 77, 60
STATED = ("size", "relation", "background")


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pipeline", default="shapes-tiny")
    arguments.add_argument("--scenes", type=int, default=400)
    options = arguments.parse_args()
    encoder = load(options.pipeline, device="cpu").clip_encoder
    asked = fixed_scenes("seen", options.scenes, seed=SEED)
    pictures = encoder.encode_images([Image.fromarray(render(scene, 256)) for scene, _ in asked])
    captions = encoder.encode_text([statement.text for _, statement in asked])
    nearest = (pictures @ captions.T).argmax(dim=1)
    texts = [statement.text for _, statement in asked]
    hits = [texts[int(row)] == text for row, text in zip(nearest, texts, strict=True)]
    rates = {f"of {options.scenes} captions": wilson(sum(hits), len(hits))}
    say("the captions of changed scenes")
    for kind, changed in changes([scene for scene, _ in asked]).items():
        rows = torch.tensor(list(changed))
        own, other = (encoder.encode_text([pair[side] for pair in changed.values()]) for side in (0, 1))
        right = ((pictures[rows] * own).sum(1) > (pictures[rows] * other).sum(1)).sum()
        rates[f"against another {kind}"] = wilson(int(right), len(rows))
    show([row(name, rate) for name, rate in rates.items()], {name: rate._asdict() for name, rate in rates.items()})


def changes(scenes: list[Scene]) -> dict[str, dict[int, tuple[str, str]]]:
    """For every kind of single change: scene number -> its caption and the changed scene's, in which all is stated."""
    found: defaultdict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
    for number, scene in enumerate(scenes):
        for attempt in range(TRIES):
            rng = random.Random(f"{SEED}/{number}/{attempt}")
            changed = mutate(scene, rng)
            kinds = kinds_of_change(scene, changed)
            if len(kinds) == 1:
                own, other = (describe(each, rng, stating=STATED).text for each in (scene, changed))
                found[min(kinds)].setdefault(number, (own, other))
    return dict(sorted(found.items()))


def kinds_of_change(a: Scene, b: Scene) -> frozenset[str]:
    """In what two scenes differ."""
    if len(a.objects) != len(b.objects):
        return frozenset({"count"})
    pairs, colours, shapes = (
        [Counter(map(key, scene.objects)) for scene in (a, b)]
        for key in (attrgetter("colour", "shape"), attrgetter("colour"), attrgetter("shape"))
    )
    apart = {"colour"} if colours[0] != colours[1] else set()
    apart |= {"shape"} if shapes[0] != shapes[1] else set()
    if pairs[0] != pairs[1] and not apart:
        apart = {"binding"}
    return frozenset(apart) | differences(a, b)


def row(name: str, rate: Rate) -> dict[str, object]:
    """A line of the table."""
    interval = f"{100 * (rate.low or 0):.1f} to {100 * (rate.high or 0):.1f}"
    return {"its own caption": name, "n": rate.n, "right, %": 100 * (rate.value or 0), "95 % interval": interval}


if __name__ == "__main__":
    main()
