"""The files of a folder, found by the names that people and programs write for them."""

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from urllib.parse import unquote


def composed(name: str) -> str:
    """A name in one of the two forms that letters with accents have: macOS lists the other, most people type this."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class FileNames:
    """The names of the files in a folder, with `/` between."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def find(self, written: str, home: str = "") -> str | None:
        """The file that is meant by a name in a table that lies in the folder `home`; None if there is none.

        Names are relative to the table or to the whole folder. Backslashes, percent signs for other letters, another
        form of accents, and another case where only one file fits, are understood.
        """
        if not home and written in self._names:
            return written
        places = [place for spelt in spellings(written) for place in places_of(spelt, home)]
        looks = (self._exact, self._composed, self._caseless)
        return next((found for look in looks for place in places if (found := look(place)) is not None), None)

    def _exact(self, name: str) -> str | None:
        return name if name in self._names else None

    def _composed(self, name: str) -> str | None:
        return self._by_composed.get(composed(name))

    def _caseless(self, name: str) -> str | None:
        return self._by_letters.get(_letters(name))

    @cached_property
    def _by_composed(self) -> dict[str, str]:
        return {composed(name): name for name in sorted(self._names) if not name.isascii()}

    @cached_property
    def _by_letters(self) -> dict[str, str | None]:
        """By a name without its case; None where several files share it."""
        found: dict[str, str | None] = {}
        for name in self._names:
            key = _letters(name)
            found[key] = None if key in found else name
        return found


def spellings(written: str) -> Iterator[str]:
    """A name, and what else it may stand for."""
    yield written
    if "\\" in written:
        yield written.replace("\\", "/")
    if "%" in written:
        yield unquote(written)


def places_of(name: str, home: str) -> list[str]:
    """Where a table in `home` may mean a file to lie: beside the table, else in the whole folder."""
    places = [posixpath.join(home, name), name, name.lstrip("/")]
    return list(dict.fromkeys(map(posixpath.normpath, places)))


def _letters(name: str) -> str:
    return composed(name).casefold()
