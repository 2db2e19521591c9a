"""What a data set left out, and why: counted, named, and known to every process that reads it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, runtime_checkable

import torch

NO_CAPTION = "no caption"
EMPTY_FILE = "empty file"
NOT_A_PICTURE = "not a picture"
TOO_LARGE = "too large"
OUTSIDE = "leads out of the folder"
DAMAGED = "damaged or truncated"
MISSING = "missing"
BAD_CAPTION = "caption can't be read"
BAD_TABLE = "table that can't be used"

FOLLOW = "--follow-links, in Python follow_links=True, reads what links lead to"
HINTS = {OUTSIDE: f"not read for safety; {FOLLOW}"}
ON_OPENING = (EMPTY_FILE, NOT_A_PICTURE, TOO_LARGE, DAMAGED, MISSING)  # what shows when a picture is opened


class Skipped(NamedTuple):
    """A picture that is left out, and why; or, where `picture` is False, a table, a caption or a folder."""

    name: str
    reason: str
    detail: str = ""
    picture: bool = True


class SkipReport(NamedTuple):
    """What a folder left out so far, of `found` pictures. As text: a line a reason, with the names."""

    found: int
    skipped: tuple[Skipped, ...]

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Sorted names by reason."""
        reasons = sorted({item.reason for item in self.skipped})
        return {reason: tuple(sorted(s.name for s in self.skipped if s.reason == reason)) for reason in reasons}

    @property
    def counts(self) -> dict[str, int]:
        """How many by reason."""
        return {reason: len(names) for reason, names in self.names.items()}

    def __str__(self) -> str:
        left = sum(item.picture for item in self.skipped)
        used = f"{self.found - left} of {self.found} pictures used, {left} skipped"
        lines = (f"  {reason} ({len(names)}): {listed(names)}{_hint(reason)}" for reason, names in self.names.items())
        return "\n".join([used if left else f"all {self.found} pictures used", *lines])


@runtime_checkable
class Skipping(Protocol):
    """A data set that may leave pictures out, and says which."""

    def report(self) -> SkipReport: ...


class Marks:
    """Why each of some pictures can't be read, by number.

    Whatever a process of a DataLoader marks, the others read at once: the marks lie in memory that all share.
    """

    def __init__(self, count: int) -> None:
        self._codes = torch.zeros(count, dtype=torch.uint8, device="cpu")
        with suppress(RuntimeError):  # a system without shared memory, where a DataLoader has no processes either
            self._codes.share_memory_()  # type: ignore[no-untyped-call]

    def __getitem__(self, index: int) -> str | None:
        code = int(self._codes[index])
        return ON_OPENING[code - 1] if code else None

    def __setitem__(self, index: int, reason: str) -> None:
        self._codes[index] = ON_OPENING.index(reason) + 1

    def all(self) -> dict[int, str]:
        """The reasons by number."""
        return {int(index): ON_OPENING[int(self._codes[index]) - 1] for index in self._codes.nonzero()[:, 0]}


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first of some names, in letters that do a terminal no harm, and how many more there are."""
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in names[:most]]
    return ", ".join([*shown, f"... and {len(names) - most} more"] if len(names) > most else shown)


def _hint(reason: str) -> str:
    return f" ({HINTS[reason]})" if reason in HINTS else ""
