"""Does a picture show what its caption states? The verdict on one picture, and the rates over many."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

from dalle_2.data.captions import StatedObject, Statement
from dalle_2.data.scenes import Scene, SceneObject, relation
from dalle_2.evaluation.intervals import Rate, wilson
from dalle_2.evaluation.scene_parser import Unreadable

ATTRIBUTES = ("exact", "count", "colour", "shape", "size", "relation", "background")


@dataclass(frozen=True)
class Verdict:
    """What is right about a picture; None where the caption does not state it.

    Colour, shape and size are right where they are so for every stated object. `reason` says why an
    unreadable picture, which is wrong in all that was stated, could not be read.
    """

    exact: bool
    count: bool
    colour: bool
    shape: bool
    size: bool | None
    relation: bool | None
    background: bool | None
    reason: str | None = None


def judge(parsed: Scene | Unreadable, statement: Statement) -> Verdict:
    """Compares what was read from a picture with what its caption states.

    Exact needs the right count and every stated attribute and relation. Objects read are paired with
    objects stated in the way that makes most of the statement true.
    """
    if isinstance(parsed, Unreadable):
        return _all_wrong(statement, parsed.reason)
    things: list[SceneObject | None] = list(parsed.objects)
    things += [None] * (len(statement.objects) - len(things))
    verdicts = (_compare(parsed, order, statement) for order in permutations(things, len(statement.objects)))
    return max(verdicts, key=_merit)[0]


def _all_wrong(statement: Statement, reason: str) -> Verdict:
    has_size = any(thing.size is not None for thing in statement.objects)
    return Verdict(
        exact=False,
        count=False,
        colour=False,
        shape=False,
        size=False if has_size else None,
        relation=None if statement.relation is None else False,
        background=None if statement.background is None else False,
        reason=reason,
    )


def _compare(
    parsed: Scene, things: tuple[SceneObject | None, ...], statement: Statement
) -> tuple[Verdict, int]:
    """The verdict for one pairing, and how many stated attributes of objects it makes true."""
    pairs = list(zip(things, statement.objects, strict=True))
    colours = [thing is not None and thing.colour == stated.colour for thing, stated in pairs]
    shapes = [thing is not None and thing.shape == stated.shape for thing, stated in pairs]
    sizes = [_size_is_right(thing, stated) for thing, stated in pairs if stated.size is not None]
    related = _relation_is_right(things, statement)
    grounded = None if statement.background is None else parsed.background == statement.background
    count = len(parsed.objects) == len(statement.objects)
    exact = (
        count
        and all(colours)
        and all(shapes)
        and all(sizes)
        and related is not False
        and grounded is not False
    )
    size = all(sizes) if sizes else None
    return Verdict(exact, count, all(colours), all(shapes), size, related, grounded), sum(
        colours + shapes + sizes
    )


def _size_is_right(thing: SceneObject | None, stated: StatedObject) -> bool:
    return thing is not None and thing.size == stated.size


def _relation_is_right(things: tuple[SceneObject | None, ...], statement: Statement) -> bool | None:
    if statement.relation is None:
        return None
    subject, other = things[statement.relation.subject], things[statement.relation.object]
    return subject is not None and other is not None and relation(subject, other) == statement.relation.name


def _merit(candidate: tuple[Verdict, int]) -> tuple[bool, int, bool]:
    verdict, attributes = candidate
    return verdict.exact, attributes, verdict.relation is True


def aggregate(verdicts: Iterable[Verdict]) -> dict[str, Rate]:
    """The rate of every attribute over the pictures whose captions state it, and of unreadable pictures."""
    verdicts = list(verdicts)
    rates = {}
    for name in ATTRIBUTES:
        stated = [getattr(verdict, name) for verdict in verdicts if getattr(verdict, name) is not None]
        rates[name] = wilson(sum(stated), len(stated))
    rates["unreadable"] = wilson(sum(verdict.reason is not None for verdict in verdicts), len(verdicts))
    return rates
