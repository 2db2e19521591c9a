"""Which pictures of a folder are kept out of training, so that something is left to measure on."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

from dalle_2.errors import UsageError


def ranked(names: Iterable[str]) -> list[str]:
    """Names in an order that follows from each name alone: chance, but the same at every place and every time."""
    return sorted(names, key=_place)


def held_out(names: Sequence[str], share: float) -> list[str]:
    """The share of these names that is kept out, at least one unless it is 0; a larger share holds a smaller one."""
    return ranked(names)[: max(1, round(share * len(names)))] if share else []


def left_to_train_on(names: Sequence[str], share: float | str) -> list[str]:
    """The other names, in the order given. Raises UsageError for a share that leaves nothing, or is none."""
    if isinstance(share, str) or not 0 <= share < 1:  # as it may come from a settings file
        raise UsageError(f"held_out must be at least 0 and below 1, got {share!r}: 0.1 keeps every tenth picture out")
    out = {*held_out(names, share)}
    if len(out) == len(names) > 0:
        raise UsageError(f"held_out {share} keeps all of {len(names)} pictures out: add some, or leave it out")
    return [name for name in names if name not in out]


def _place(name: str) -> bytes:
    # A Mac may write the same name in another form.
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")).digest()
