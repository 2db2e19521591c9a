"""Says in words what a scene shows, in several phrasings, and keeps what was said beside the words."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from dalle_2.data.scenes import INVERSE, Scene, relation


class StatedObject(NamedTuple):
    """What a caption says of one object; size is None where it is left unsaid."""

    colour: str
    shape: str
    size: str | None = None


class StatedRelation(NamedTuple):
    """`subject` stands `name` (left of, right of, above, below) `object`; both index the stated objects."""

    subject: int
    name: str
    object: int


@dataclass(frozen=True)
class Statement:
    """A caption and what it states; relation and background are None where left unsaid."""

    text: str
    objects: tuple[StatedObject, ...]
    relation: StatedRelation | None = None
    background: str | None = None


SIZE_WORDS = {
    "small": ("small",),
    "medium": ("medium", "medium", "medium-sized"),
    "large": ("large", "large", "big"),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_RELATION_RATES = {1: 0.0, 2: 0.75, 3: 0.5}
_SIZE_RATE, _BACKGROUND_RATE = 0.5, 0.6
_NO_STATING: frozenset[str] = frozenset()


def describe(scene: Scene, rng: random.Random, *, stating: Collection[str] = _NO_STATING) -> Statement:
    """A random caption: every colour and shape, and by chance the sizes, a relation and the background.

    What `stating` names (size, relation, background) is always said. A relation is stated between
    the scene's objects 0 and 1 only, which always stand clearly to one side of each other.
    """
    count = len(scene.objects)
    with_sizes = "size" in stating or rng.random() < _SIZE_RATE
    with_relation = count > 1 and ("relation" in stating or rng.random() < _RELATION_RATES[count])
    with_background = "background" in stating or rng.random() < _BACKGROUND_RATE
    order = list(range(count))
    # A stated pair stays together, in either order; anything else is listed as it comes.
    pair = order[:2]
    rng.shuffle(pair)
    if with_relation:
        order[:2] = pair
    else:
        rng.shuffle(order)
    things = [scene.objects[index] for index in order]
    stated = tuple(
        StatedObject(thing.colour, thing.shape, thing.size if with_sizes else None) for thing in things
    )
    name = relation(things[0], things[1]) if with_relation else None
    text = _sentence(stated, name, rng)
    background = scene.background if with_background else None
    if background is not None:
        text = _on_background(text, background, rng)
    return Statement(text, stated, None if name is None else StatedRelation(0, name, 1), background)


def _sentence(stated: tuple[StatedObject, ...], name: str | None, rng: random.Random) -> str:
    with_article = rng.random() < 0.8
    phrases = [_phrase(thing, with_article, rng) for thing in stated]
    if name is None:
        return _listed(phrases)
    words = rng.choice(RELATION_WORDS[name])
    first, second, *rest = phrases
    if rest:
        pair_comes_first = rng.random() < 0.7
        return _joined(f"{first} {words} {second}", rest[0], pair_comes_first)
    if rng.random() < 0.75:
        return f"{first} {words} {second}"
    return f"{first} and {second}, with {_aside(stated, name, rng)}"


def _joined(pair: str, other: str, pair_comes_first: bool) -> str:
    return f"{pair}, and {other}" if pair_comes_first else f"{other}, and {pair}"


def _aside(stated: tuple[StatedObject, ...], name: str, rng: random.Random) -> str:
    """The relation said after both objects were named, from either one's side."""
    first, second = (f"the {thing.colour} {thing.shape}" for thing in stated)
    if rng.random() < 0.5:
        return f"{first} {rng.choice(RELATION_WORDS[name])} {second}"
    return f"{second} {rng.choice(RELATION_WORDS[INVERSE[name]])} {first}"


def _phrase(thing: StatedObject, with_article: bool, rng: random.Random) -> str:
    words = f"{thing.colour} {thing.shape}"
    if thing.size is not None:
        words = f"{rng.choice(SIZE_WORDS[thing.size])} {words}"
    return _article(words) if with_article else words


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _listed(phrases: list[str]) -> str:
    if len(phrases) < 3:
        return " and ".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _on_background(text: str, background: str, rng: random.Random) -> str:
    wording = rng.randrange(6)
    if wording == 0:
        return f"on a {background} background, {text}"
    if wording == 1:
        return f"{text}, {background} background"
    if wording == 2:
        return f"{text} against a {background} background"
    if wording == 3:
        return f"{text} on {background}"
    return f"{text} on a {background} background"
