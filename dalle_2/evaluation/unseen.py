"""Which pictures of a folder a pipeline is measured on: those that its training never saw, where there are some."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

from dalle_2.data.held_out import held_out, ranked
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import UsageError

LEAST = 2  # one caption has no other to be told from


@dataclass(frozen=True)
class Chosen:
    """Pictures by number, and how many of them training saw; None where that is not known."""

    rows: list[int]
    seen: int | None

    @property
    def verdict(self) -> str:
        """What the figures are worth."""
        count = len(self.rows)
        if self.seen is None:
            return "what this pipeline was trained on is not recorded: it may have seen these pictures"
        if self.seen == 0:
            return f"training saw none of these {count} pictures"
        if self.seen == count:
            return (
                f"training saw all of these {count} pictures: the figures say how well it knows them by heart, and "
                "nothing of others; `dalle2 train --held-out 0.1` keeps some for this"
            )
        return f"training saw {self.seen} of these {count} pictures: the figures are better than on others"


def choose(folder: ImageFolder, most: int, share: float | None, seen: Collection[str] | None) -> Chosen:
    """At most so many pictures, in an order that follows from their names.

    share: of the folder, as training keeps it out; without one, what training never saw, and where that is nothing, or
    not known, whatever there is. seen: the digests of what training saw, see `pipelines.seen`. Raises UsageError for a
    share that isn't above 0 and at most 1, and for less than two pictures.
    """
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"held-out must be above 0 and at most 1, got {share}: 0.1 is every tenth picture")
    numbers = {folder.file(index): index for index in range(len(folder))}
    if share is not None:
        rows = [numbers[name] for name in held_out(list(numbers), share)][:most]
    else:
        rows = _unseen([numbers[name] for name in ranked(numbers)], folder, most, seen)
    if len(rows) < LEAST:
        raise UsageError(
            f"measuring takes at least {LEAST} captioned pictures, got {len(rows)} of {len(folder)}: "
            "add some, or raise --held-out and --n"
        )
    known = None if seen is None else sum(folder.digest(row) in seen for row in rows)
    return Chosen(rows, known)


def _unseen(rows: list[int], folder: ImageFolder, most: int, seen: Collection[str] | None) -> list[int]:
    fresh = (row for row in rows if seen is not None and folder.digest(row) not in seen)
    found = list(islice(fresh, most))
    return found if len(found) >= LEAST else rows[:most]
