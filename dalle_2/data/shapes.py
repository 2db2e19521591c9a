"""The procedural data set: coloured shapes with captions, each following from the seed and its number."""

import random
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dalle_2.data.abs_dataset import AbsDataset, Example
from dalle_2.data.captions import Statement, describe
from dalle_2.data.render import render
from dalle_2.data.scenes import Rgb, Scene, check_split, differences, mutate, sample_scene
from dalle_2.errors import UsageError

COLOUR_JITTER = 3  # levels of 255, either way
EVALUATION_SEED = 7_041_976


class _Item(NamedTuple):
    scene: Scene
    statement: Statement
    jitter: tuple[Rgb, ...]


class Shapes(AbsDataset):
    """One to three coloured shapes on a plain background, with a caption.

    Example i follows from i and the settings alone. With siblings = k, indices g*k .. g*k + k - 1 form a
    group: a scene and k - 1 hard negatives of it, whose captions all state whatever sets the group's
    scenes apart. `objects` weighs scenes of one, two and three objects against each other; by default
    1:2:1, and 0:2:1 in the split `pairing`, which needs two. Raises UsageError for settings that make
    no sense.
    """

    name = "shapes"

    def __init__(
        self,
        size: int = 64,
        length: int = 1_000_000,
        *,
        seed: int = 0,
        split: str = "train",
        siblings: int = 1,
        objects: tuple[float, float, float] | None = None,
    ) -> None:
        check_split(split)
        if length < 1 or siblings < 1:
            raise UsageError(f"length and siblings must be at least 1, got {length} and {siblings}")
        if objects is None:
            objects = (0.0, 0.5, 0.25) if split == "pairing" else (0.25, 0.5, 0.25)
        if min(objects) < 0 or sum(objects) <= 0 or (split == "pairing" and objects[0] > 0):
            raise UsageError(
                f"the weights {objects} of 1, 2 and 3 objects must be positive in sum, none negative, "
                "and 0 for one object in the split 'pairing'"
            )
        self.size, self.length, self.seed, self.split = size, length, seed, split
        self.siblings, self.objects = siblings, objects
        self._last: tuple[int, tuple[_Item, ...]] = (-1, ())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        item = self._item(index)
        return Example(render(item.scene, self.size, jitter=item.jitter), item.statement.text)

    def caption(self, index: int) -> str:
        """The caption of example `index`, without drawing it."""
        return self._item(index).statement.text

    def scene(self, index: int) -> tuple[Scene, Statement]:
        """The scene of example `index` and what its caption states."""
        item = self._item(index)
        return item.scene, item.statement

    def image(self, index: int, size: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of example `index`, drawn anew at another size."""
        item = self._item(index)
        return render(item.scene, size, jitter=item.jitter)

    def _item(self, index: int) -> _Item:
        if not 0 <= index < self.length:
            raise IndexError(f"example {index} of a set of {self.length}")
        group, member = divmod(index, self.siblings)
        # Neighbours are mostly read one after the other; one assignment keeps the memo safe between threads.
        last, items = self._last
        if last != group:
            items = self._group(group)
            self._last = (group, items)
        return items[member]

    def _group(self, group: int) -> tuple[_Item, ...]:
        rng = random.Random(f"{self.split}/{self.seed}/{group}")
        count = rng.choices((1, 2, 3), self.objects)[0]
        scenes = [sample_scene(rng, objects=count, split=self.split)]
        while len(scenes) < self.siblings:
            scenes.append(_another(scenes, rng, self.split))
        stating = frozenset().union(*(differences(scenes[0], other) for other in scenes[1:]))
        return tuple(
            _Item(scene, describe(scene, rng, stating=stating), _jitter(scene, rng)) for scene in scenes
        )


def _another(scenes: list[Scene], rng: random.Random, split: str) -> Scene:
    """A hard negative of the first scene, told apart from the others too where a few tries find one."""
    for _ in range(5):
        mutant = mutate(scenes[0], rng, split)
        if all(_told_apart(mutant, other) for other in scenes):
            break
    return mutant


def _told_apart(a: Scene, b: Scene) -> bool:
    """Whether a caption that states everything would fit only one of the two."""
    return {thing.kind for thing in a.objects} != {thing.kind for thing in b.objects} or bool(
        differences(a, b)
    )


def _jitter(scene: Scene, rng: random.Random) -> tuple[Rgb, ...]:
    def shift() -> int:
        return rng.randint(-COLOUR_JITTER, COLOUR_JITTER)

    return tuple((shift(), shift(), shift()) for _ in range(1 + len(scene.objects)))


def fixed_scenes(
    split: str, n: int = 500, *, objects: int = 2, seed: int = EVALUATION_SEED
) -> list[tuple[Scene, Statement]]:
    """The scenes and captions an evaluation asks for, the same for the same arguments.

    A smaller n gives the first n of them.

    Tuning should use another seed than the figures that are reported.
    """
    generators = (random.Random(f"fixed/{split}/{objects}/{seed}/{i}") for i in range(n))
    scenes = ((sample_scene(rng, objects=objects, split=split), rng) for rng in generators)
    return [(scene, describe(scene, rng)) for scene, rng in scenes]
