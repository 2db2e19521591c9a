"""Where the blocks of our U-Net stand, level by level, for layouts that number them in their own way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Side = Literal["down", "middle", "up"]


@dataclass(frozen=True)
class Place:
    """A block of ours. level: 0 is the finest. n: its number there; None for what leads to another level.

    attends: whether it has attention.
    """

    ours: str
    side: Side
    level: int
    n: int | None
    attends: bool = False


def places(network: str, levels: int, blocks: int, attention: tuple[int, ...], middle: bool) -> Iterator[Place]:
    """All blocks in the order they work in. What leads from one level to another counts to the one it leads from."""
    number = 0
    for level in range(levels):
        if level:
            yield Place(f"{network}.down.{number}", "down", level - 1, None)
            number += 1
        for n in range(blocks):
            yield Place(f"{network}.down.{number}", "down", level, n, level in attention)
            number += 1
    for n in range(2):
        yield Place(f"{network}.middle.{n}", "middle", levels - 1, n, middle and n == 0)
    number = 0
    for level in reversed(range(levels)):
        for n in range(blocks + 1):
            yield Place(f"{network}.up.{number}", "up", level, n, level in attention)
            number += 1
        if level:
            yield Place(f"{network}.up.{number}", "up", level, None)
            number += 1
