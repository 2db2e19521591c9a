"""Where a command's seconds went: each is counted once, from the start of its process on."""

import time
from collections import Counter
from contextvars import ContextVar
from typing import Literal

from dalle_2.machine import process_age

Kind = Literal["loading", "drawing", "writing", "other"]
TENTH = 0.1  # of a second, as times are shown

_began: ContextVar[float | None] = ContextVar("began", default=None)


def begin(*, with_process: bool) -> None:
    """A command begins: now, or when its process did, where that is known."""
    age = process_age() if with_process else 0.0
    _began.set(time.monotonic() - (age or 0.0))


class Stopwatch:
    """Runs from the start of the command on, or from now outside of one.

    It counts in tenths of a second, as they are shown: so laps add up to the whole to the last digit, and a lap that is
    too short for it goes, as often as it deserves, as one tenth.
    """

    def __init__(self) -> None:
        began = _began.get()
        self._began = time.monotonic() if began is None else began
        self._tenths, self._took = 0, Counter[Kind]()

    def lap(self, kind: Kind) -> float:
        """Seconds since the lap before, which were spent with that."""
        now = round((time.monotonic() - self._began) / TENTH)
        tenths = now - self._tenths
        self._tenths, self._took[kind] = now, self._took[kind] + tenths
        return tenths * TENTH

    def sum(self) -> str:
        """Every kind of which there is something to say, with the whole: "of 5.6 s: 2.2 loading, 2.6 drawing"."""
        parts = [f"{tenths * TENTH:.1f} {kind}" for kind, tenths in self._took.items() if tenths]
        whole = f"{self._tenths * TENTH:.1f} s"
        return f"of {whole}: {', '.join(parts)}" if len(parts) > 1 else whole
