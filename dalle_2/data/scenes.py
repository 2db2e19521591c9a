"""What a picture of the Shapes set shows: its vocabulary, its geometry, its splits and its hard negatives.

Lengths are in units of the picture's side; x runs to the right and y downwards, both from 0 to 1.
Objects 0 and 1 of a scene always stand clearly to one side of each other, so a relation between them
can be stated.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

from dalle_2.errors import UsageError

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (215, 30, 40),
    "orange": (255, 128, 0),
    "yellow": (255, 225, 40),
    "green": (40, 170, 70),
    "cyan": (40, 205, 220),
    "blue": (40, 90, 230),
    "purple": (140, 60, 200),
    "pink": (240, 90, 170),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (248, 248, 248),
    "black": (10, 10, 10),
    "gray": (124, 124, 124),
    "navy": (22, 34, 94),
    "beige": (222, 205, 170),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
# The gaps between the ranges keep a size readable from the picture.
RADII: dict[str, tuple[float, float]] = {
    "small": (0.09, 0.105),
    "medium": (0.135, 0.15),
    "large": (0.185, 0.2),
}
SIZES = tuple(RADII)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
SPLITS = ("train", "seen", "pairing", "unseen")

EXTENT = 1.12  # half the side of the box that holds any shape of radius 1
GAP = 0.03  # least distance between two boxes
MARGIN = 0.02  # least distance from a box to the edge of the picture
DOMINANCE = 1.6  # a relation is clear where one offset is this many times the other


class Kind(NamedTuple):
    """A colour-shape pair, the unit of the held-out splits."""

    colour: str
    shape: str


# Each colour and each shape once.
HELD_OUT_KINDS = frozenset(
    Kind(*words.split())
    for words in (
        "red diamond",
        "orange cross",
        "yellow circle",
        "green heart",
        "cyan square",
        "blue ring",
        "purple triangle",
        "pink star",
    )
)
KINDS = tuple(Kind(colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_KINDS = tuple(kind for kind in KINDS if kind not in HELD_OUT_KINDS)
_UNSEEN_KINDS = tuple(kind for kind in KINDS if kind in HELD_OUT_KINDS)


def _is_drawn_out(pair: tuple[Kind, Kind]) -> bool:
    words = "pairing: " + " + ".join(sorted(" ".join(kind) for kind in pair))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") < 0.1 * 2**32


# About a tenth of the unordered pairs of seen kinds, the same ones on every machine.
HELD_OUT_PAIRINGS = frozenset(frozenset(pair) for pair in combinations(SEEN_KINDS, 2) if _is_drawn_out(pair))
_PAIRINGS = tuple(pair for pair in combinations(SEEN_KINDS, 2) if frozenset(pair) in HELD_OUT_PAIRINGS)


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape; x, y and radius in units of the picture's side."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def kind(self) -> Kind:
        return Kind(self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    """A background and one to three objects that don't touch."""

    background: str
    objects: tuple[SceneObject, ...]


def relation(a: SceneObject, b: SceneObject) -> str:
    """Where `a` stands as seen from `b`, by the larger of the two offsets."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def clearly_related(a: SceneObject, b: SceneObject) -> bool:
    """Whether one offset is at least DOMINANCE times the other, so that nobody would dispute the relation."""
    minor, major = sorted((abs(a.x - b.x), abs(a.y - b.y)))
    return major >= DOMINANCE * minor


def split_of(scene: Scene) -> str:
    """The split a scene belongs to: `pairing`, `unseen`, or `train`, whose distribution `seen` shares."""
    return _split_of_kinds([thing.kind for thing in scene.objects])


def _split_of_kinds(kinds: Sequence[Kind]) -> str:
    if any(kind in HELD_OUT_KINDS for kind in kinds):
        return "unseen"
    if any(frozenset(pair) in HELD_OUT_PAIRINGS for pair in combinations(kinds, 2)):
        return "pairing"
    return "train"


def is_valid(scene: Scene, split: str) -> bool:
    """Whether a scene keeps every rule of the set and belongs to the split."""
    things = scene.objects
    kinds = [thing.kind for thing in things]
    return (
        1 <= len(things) <= 3
        and len(set(kinds)) == len(kinds)
        and _split_of_kinds(kinds) == ("train" if split == "seen" else split)
        and all(_is_inside(thing) for thing in things)
        and all(_are_apart(a, b) for a, b in combinations(things, 2))
        and (len(things) < 2 or clearly_related(things[0], things[1]))
    )


def _reach(radius: float) -> float:
    """The least distance from an object's centre to the picture's edge."""
    return EXTENT * radius + MARGIN


def _separation(a: float, b: float) -> float:
    """The least offset along one axis between the centres of objects of radii a and b."""
    return EXTENT * (a + b) + GAP


def _is_inside(thing: SceneObject) -> bool:
    reach = _reach(thing.radius) - 1e-9
    return reach <= thing.x <= 1 - reach and reach <= thing.y <= 1 - reach


def _are_apart(a: SceneObject, b: SceneObject) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= _separation(a.radius, b.radius) - 1e-9


def sample_scene(rng: random.Random, *, objects: int, split: str = "train") -> Scene:
    """A random scene of a split with one to three objects.

    `seen` has the distribution of `train`; `pairing` holds a pair of seen kinds that training never shows
    together; `unseen` holds one kind that training never shows. Raises UsageError for an impossible wish.
    """
    check_split(split)
    if not 1 <= objects <= 3:
        raise UsageError(f"a scene has 1 to 3 objects, got {objects}")
    if split == "pairing" and objects == 1:
        raise UsageError("a scene of the split 'pairing' needs at least 2 objects, got 1")
    return Scene(rng.choice(tuple(BACKGROUNDS)), _place(rng, _sample_kinds(rng, objects, split)))


def check_split(split: str) -> None:
    """Raises UsageError unless `split` is the name of one."""
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")


def _sample_kinds(rng: random.Random, count: int, split: str) -> list[Kind]:
    if split == "pairing":
        kinds = list(rng.choice(_PAIRINGS))
    elif split == "unseen":
        kinds = [rng.choice(_UNSEEN_KINDS)]
    else:
        kinds = []
    while len(kinds) < count:
        kind = rng.choice(SEEN_KINDS)
        if kind not in kinds and not any(frozenset((kind, other)) in HELD_OUT_PAIRINGS for other in kinds):
            kinds.append(kind)
    rng.shuffle(kinds)
    return kinds


def _place(rng: random.Random, kinds: Sequence[Kind]) -> tuple[SceneObject, ...]:
    """Draws sizes and positions; starts again, sizes included, where a third object finds no room."""
    while True:
        sizes = [rng.choice(SIZES) for _ in kinds]
        radii = [rng.uniform(*RADII[size]) for size in sizes]
        centres = _place_pair(rng, radii) if len(kinds) > 1 else [_anywhere(rng, radii[0])]
        things = [
            SceneObject(kind.colour, kind.shape, size, x, y, radius)
            for kind, size, radius, (x, y) in zip(kinds, sizes, radii, centres, strict=False)
        ]
        if len(kinds) < 3:
            return tuple(things)
        third = SceneObject(*kinds[2], sizes[2], 0.0, 0.0, radii[2])
        placed = _place_beside(rng, third, things)
        if placed is not None:
            return (*things, placed)


def _anywhere(rng: random.Random, radius: float) -> tuple[float, float]:
    reach = _reach(radius)
    return rng.uniform(reach, 1 - reach), rng.uniform(reach, 1 - reach)


def _place_pair(rng: random.Random, radii: Sequence[float]) -> list[tuple[float, float]]:
    """Two centres in a clear relation, each of the four equally often; no rejection needed."""
    first, second = rng.sample((0, 1), 2)  # `first` stands to the left or above
    a, b = radii[first], radii[second]
    slack = 1 - _reach(a) - _reach(b) - _separation(a, b)
    near, far = sorted((rng.uniform(0, slack), rng.uniform(0, slack)))
    offset = _separation(a, b) + far - near
    across_a = rng.uniform(_reach(a), 1 - _reach(a))
    leeway = offset / DOMINANCE
    across_b = rng.uniform(max(_reach(b), across_a - leeway), min(1 - _reach(b), across_a + leeway))
    centres = {first: (_reach(a) + near, across_a), second: (_reach(a) + near + offset, across_b)}
    upright = rng.random() < 0.5
    return [(centres[i][1], centres[i][0]) if upright else centres[i] for i in (0, 1)]


def _place_beside(
    rng: random.Random, thing: SceneObject, others: Sequence[SceneObject]
) -> SceneObject | None:
    """The object at a random free place, or None where 30 tries found none."""
    for _ in range(30):
        x, y = _anywhere(rng, thing.radius)
        placed = replace(thing, x=x, y=y)
        if all(_are_apart(placed, other) for other in others):
            return placed
    return None


def mutate(scene: Scene, rng: random.Random, split: str = "train") -> Scene:
    """A hard negative: the scene with one attribute changed, one object more or less, or two things swapped.

    The result is a valid scene of the same split.
    """
    for _ in range(40):
        change = rng.choices(_CHANGES, _CHANGE_WEIGHTS)[0]
        mutant = change(scene, rng)
        if mutant != scene and is_valid(mutant, split):
            return mutant
    return _change_background(scene, rng)


def differences(a: Scene, b: Scene) -> frozenset[str]:
    """What a caption must state, beyond colours and shapes, to tell two scenes apart.

    Any of size, relation and background.
    """
    told = set()
    if a.background != b.background:
        told.add("background")
    places = {thing.kind: thing for thing in a.objects}
    shared = [(places[thing.kind], thing) for thing in b.objects if thing.kind in places]
    if any(before.size != after.size for before, after in shared):
        told.add("size")
    if len(shared) == len(a.objects) == len(b.objects) and any(
        abs(before.x - after.x) + abs(before.y - after.y) > 0.1 for before, after in shared
    ):
        told.add("relation")
    return frozenset(told)


def _with_object(scene: Scene, index: int, thing: SceneObject) -> Scene:
    return replace(scene, objects=(*scene.objects[:index], thing, *scene.objects[index + 1 :]))


def _change_colour(scene: Scene, rng: random.Random) -> Scene:
    index = rng.randrange(len(scene.objects))
    return _with_object(scene, index, replace(scene.objects[index], colour=rng.choice(tuple(COLOURS))))


def _change_shape(scene: Scene, rng: random.Random) -> Scene:
    index = rng.randrange(len(scene.objects))
    return _with_object(scene, index, replace(scene.objects[index], shape=rng.choice(SHAPES)))


def _change_size(scene: Scene, rng: random.Random) -> Scene:
    index = rng.randrange(len(scene.objects))
    thing = scene.objects[index]
    size = rng.choice([size for size in SIZES if size != thing.size])
    radius = rng.uniform(*RADII[size])
    low, high = _reach(radius), 1 - _reach(radius)
    x, y = (min(max(place, low), high) for place in (thing.x, thing.y))
    return _with_object(scene, index, replace(thing, size=size, radius=radius, x=x, y=y))


def _change_background(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, background=rng.choice([name for name in BACKGROUNDS if name != scene.background]))


def _change_count(scene: Scene, rng: random.Random) -> Scene:
    things = scene.objects
    if len(things) == 3 or (len(things) == 2 and rng.random() < 0.5):
        index = rng.randrange(len(things))
        return replace(scene, objects=things[:index] + things[index + 1 :])
    kind, size = rng.choice(SEEN_KINDS), rng.choice(SIZES)
    added = _place_beside(rng, SceneObject(*kind, size, 0.0, 0.0, rng.uniform(*RADII[size])), things)
    return scene if added is None else replace(scene, objects=(*things, added))


def _swap_colours(scene: Scene, rng: random.Random) -> Scene:
    if len(scene.objects) < 2:
        return scene
    i, j = rng.sample(range(len(scene.objects)), 2)
    a, b = scene.objects[i], scene.objects[j]
    return _with_object(_with_object(scene, i, replace(a, colour=b.colour)), j, replace(b, colour=a.colour))


def _swap_shapes(scene: Scene, rng: random.Random) -> Scene:
    if len(scene.objects) < 2:
        return scene
    i, j = rng.sample(range(len(scene.objects)), 2)
    a, b = scene.objects[i], scene.objects[j]
    return _with_object(_with_object(scene, i, replace(a, shape=b.shape)), j, replace(b, shape=a.shape))


def _swap_places(scene: Scene, rng: random.Random) -> Scene:
    """Swaps objects 0 and 1, whose relation a caption can state."""
    if len(scene.objects) < 2:
        return scene
    a, b, *rest = scene.objects
    return replace(scene, objects=(replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y), *rest))


_Change = Callable[[Scene, random.Random], Scene]
# Binding colours and shapes to objects is what an embedding learns last, so swaps come most often.
_CHANGE_TABLE: tuple[tuple[_Change, float], ...] = (
    (_swap_colours, 3),
    (_swap_shapes, 3),
    (_swap_places, 4),
    (_change_shape, 2),
    (_change_colour, 2),
    (_change_size, 1.5),
    (_change_background, 1),
    (_change_count, 1),
)
_CHANGES = [change for change, _ in _CHANGE_TABLE]
_CHANGE_WEIGHTS = [weight for _, weight in _CHANGE_TABLE]
