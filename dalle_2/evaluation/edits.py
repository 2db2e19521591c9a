"""Whether an edit does what it was asked and leaves the rest: cases of Shapes, and a judge without any learning."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

from dalle_2.data.captions import Statement, describe
from dalle_2.data.scenes import COLOURS, EXTENT, SHAPES, Scene, SceneObject, is_valid, sample_scene
from dalle_2.evaluation.scene_parser import Unreadable

STAYS_WITHIN = 0.06  # of the side: how far an object that stays may have moved
ROOM = 0.02  # of the side: what a hole leaves round the object that stood there


@dataclass(frozen=True)
class TextDiffCase:
    """A picture's scene, what becomes of it, and the caption of each."""

    before: Scene
    after: Scene
    source: str
    target: str


@dataclass(frozen=True)
class InpaintingCase:
    """A scene of which one object is cut out with the box (left, top, right, bottom), in units of the side."""

    scene: Scene
    statement: Statement
    box: tuple[float, float, float, float]


def text_diff_cases(count: int, seed: int) -> Iterator[TextDiffCase]:
    """Scenes of one object and of two in turn, of which one object gets another colour or another shape."""
    for number in range(count):
        rng = random.Random(f"text diff/{seed}/{number}")
        yield _text_diff_case(rng, objects=1 + number % 2, attribute="colour" if number % 4 < 2 else "shape")


def _text_diff_case(rng: random.Random, *, objects: int, attribute: str) -> TextDiffCase:
    while True:
        before = sample_scene(rng, objects=objects, split="seen")
        index = rng.randrange(objects)
        thing = before.objects[index]
        if attribute == "colour":
            changed = replace(thing, colour=rng.choice(tuple(COLOURS)))
        else:
            changed = replace(thing, shape=rng.choice(SHAPES))
        things = (*before.objects[:index], changed, *before.objects[index + 1 :])
        after = replace(before, objects=things)
        if after != before and is_valid(after, "seen"):
            wording = rng.random()  # the same words for both, but for the one that changes
            source, target = (describe(scene, random.Random(wording)).text for scene in (before, after))
            return TextDiffCase(before, after, source, target)


def inpainting_cases(count: int, seed: int) -> Iterator[InpaintingCase]:
    """Scenes of two objects, one of which is cut out."""
    for number in range(count):
        rng = random.Random(f"inpainting/{seed}/{number}")
        scene = sample_scene(rng, objects=2, split="seen")
        thing = scene.objects[rng.randrange(2)]
        reach = EXTENT * thing.radius + ROOM
        box = (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)
        left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
        yield InpaintingCase(scene, describe(scene, rng), (left, top, right, bottom))


def shows(parsed: Scene | Unreadable, wanted: Scene) -> bool:
    """Whether a picture shows a scene: background, number, and every object with colour, shape, size and place."""
    if isinstance(parsed, Unreadable) or parsed.background != wanted.background:
        return False
    if len(parsed.objects) != len(wanted.objects):
        return False
    orders = permutations(parsed.objects)
    return any(all(map(_same, order, wanted.objects)) for order in orders)


def _same(seen: SceneObject, wanted: SceneObject) -> bool:
    alike = (seen.colour, seen.shape, seen.size) == (wanted.colour, wanted.shape, wanted.size)
    return alike and max(abs(seen.x - wanted.x), abs(seen.y - wanted.y)) <= STAYS_WITHIN
