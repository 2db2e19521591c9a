"""Captions beside pictures: in tables, or in NAME.txt, NAME.caption or NAME.json.

A table holds for the files of its folder and of those below, so that each split of a data set may have its own. What
no table says of a picture, the file beside it does.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from dalle_2.data.caption_tables import CAPTION_COLUMNS, NAMED_CAPTIONS, Row, Unusable, column, either, rows_of
from dalle_2.data.caption_text import captions_of, cleaned, decoded, parsed, shortened
from dalle_2.data.file_names import FileNames, composed
from dalle_2.data.folders import Folder, Unreachable
from dalle_2.data.skipped import BAD_CAPTION, BAD_TABLE, FOLLOW, MISSING, OUTSIDE, Skipped
from dalle_2.errors import DataError

STEMS = ("captions", "metadata")
TABLES = tuple(f"{stem}.{suffix}" for stem in STEMS for suffix in ("csv", "tsv", "jsonl"))
OTHERS = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx", ".arrow")
BESIDE = (".txt", ".caption", ".json")
MOST_BESIDE, MOST_OF_A_TABLE = 2**24, 2**30  # bytes

# picture -> its captions, normalised; an empty tuple where there are none
Captions = dict[str, tuple[str, ...]]


class Read(NamedTuple):
    """The captions, and what was left out on the way: files that a table names in vain, captions that can't be read."""

    captions: Captions
    skipped: list[Skipped]


def read_captions(folder: Folder, pictures: Sequence[str], names: Sequence[str]) -> Read:
    """The captions of each of `pictures`, and of what else a table names. names: every file of the folder.

    Raises DataError for two tables in one folder, for a table that is no text, no csv or no JSON, and where there are
    tables of which none can be used.
    """
    files, skipped = FileNames(names), []
    captions: Captions = dict.fromkeys(pictures, ())
    for found in _tables(folder, names, files):
        captions |= found.captions
        skipped += found.skipped
    beside = _beside(folder, [name for name, said in captions.items() if not said], names)
    captions |= beside.captions
    return Read(captions, _known_once(skipped + beside.skipped, captions))


def is_about_captions(name: str) -> bool:
    """Whether a file may hold captions, by its name."""
    return is_table(name) or name.lower().endswith(BESIDE)


def is_table(name: str) -> bool:
    """Whether a file is a table of captions, by its name."""
    return posixpath.basename(name).lower() in TABLES


def may_be_meant(name: str) -> bool:
    """Whether a file that is no table here may have been meant as one, by its name."""
    stem = posixpath.splitext(posixpath.basename(name).lower())[0]
    return not is_table(name) and (name.lower().endswith(OTHERS) or stem in STEMS)


def _known_once(skipped: Iterable[Skipped], captions: Captions) -> list[Skipped]:
    """A picture that has a caption after all is not left out."""
    named = {item.name: item for item in skipped}
    return [item for item in named.values() if not captions.get(item.name)]


# Tables


def _tables(folder: Folder, names: Sequence[str], files: FileNames) -> list[Read]:
    """What the tables say, those of inner folders last. Raises DataError where none of those there can be used."""
    tables = sorted((posixpath.dirname(name), name) for name in names if is_table(name))
    for _, beside in groupby(tables, itemgetter(0)):
        if len(rivals := [name for _, name in beside]) > 1:
            raise DataError(f"{folder.label} has {' and '.join(rivals)}: keep one table of captions in a folder")
    found, problems = [], []
    for home, table in sorted(tables, key=lambda pair: (pair[0].count("/") + bool(pair[0]), pair)):
        try:
            found.append(_table(folder, home, table, files))
        except Unusable as error:
            problems.append((table, error))
    if problems and not found:
        raise problems[0][1]
    unusable = [Skipped(table, BAD_TABLE, str(error), picture=False) for table, error in problems]
    return [*found, Read({}, unusable)]


def _table(folder: Folder, home: str, table: str, files: FileNames) -> Read:
    """The captions of one table. Raises Unusable if it leads to no file at all."""
    label = f"{folder.label}/{table}"
    rows = rows_of(_text(folder, table), table, label)
    if not rows:
        raise Unusable(f"{label} names no pictures: expected a row for each, with a file and a caption")
    captions: dict[str, list[str]] = {}
    lacking: dict[str, tuple[Row, str]] = {}
    for row in rows:
        name, problem = _file(folder, row.file, home, files)
        if problem:
            lacking.setdefault(name, (row, problem))
        else:
            captions.setdefault(name, []).extend(row.captions)
    if not captions:
        raise Unusable(_nowhere(label, lacking))
    skipped = [Skipped(name, problem, f"{label} line {row.line}") for name, (row, problem) in lacking.items()]
    return Read({name: tuple(said) for name, said in captions.items() if said}, skipped)


def _file(folder: Folder, written: str, home: str, files: FileNames) -> tuple[str, str]:
    """The file that a row means, and what is wrong with it: nothing, missing, or out of the folder."""
    meant = folder.within(written)
    home = home if meant == written else ""
    if (found := files.find(meant, home)) is not None:
        return found, ""
    name = posixpath.normpath(posixpath.join(home, meant))
    if not folder.is_file(name):
        return name, OUTSIDE if folder.names_outside(name) else MISSING
    return name, OUTSIDE if folder.escapes(name) else ""


def _nowhere(label: str, lacking: dict[str, tuple[Row, str]]) -> str:
    """What to say of a table of which no file can be read."""
    row, problem = next(iter(lacking.values()))
    if problem == OUTSIDE:
        return (
            f"{label} line {row.line} names {shortened(repr(row.file))}, which leads out of the folder, and no file "
            f"inside it: name files relative to the table, or let links be followed ({FOLLOW})"
        )
    shown = ", ".join(shortened(repr(row.file)) for row, _ in list(lacking.values())[:3]) + (
        ", ..." if len(lacking) > 3 else ""
    )
    return f"{label} names {len(lacking)} files that don't exist ({shown}), and none that does: correct the table"


# Files beside pictures


def _beside(folder: Folder, pictures: Sequence[str], names: Iterable[str]) -> Read:
    """What the files beside some pictures say. Raises Unreachable."""
    texts = _caption_files(names) if pictures else {}
    captions: Captions = {}
    skipped = []
    for picture in pictures:
        try:
            captions[picture] = _caption_of(folder, picture, texts)
        except Unreachable:
            raise
        except DataError as error:
            skipped.append(Skipped(picture, BAD_CAPTION, str(error)))
    return Read(captions, skipped)


def _caption_files(names: Iterable[str]) -> dict[str, str]:
    """Files that may hold a caption, by their name with its accents in one form and its ending in small letters."""
    endings = ((name, posixpath.splitext(name)) for name in names)
    return {composed(stem) + end.lower(): name for name, (stem, end) in endings if end.lower() in BESIDE}


def _caption_of(folder: Folder, picture: str, texts: dict[str, str]) -> tuple[str, ...]:
    for name in _possible(picture):
        if name in texts:
            parse = _json if name.endswith(".json") else _lines
            if captions := parse(folder, texts[name]):
                return captions
    return ()


def _possible(picture: str) -> Iterator[str]:
    """cat.txt, cat.caption, cat.json; and cat.jpg.txt, as some programs write it."""
    name = composed(picture)
    stem = posixpath.splitext(name)[0]
    return (base + end for base in (stem, name) for end in BESIDE)


def _lines(folder: Folder, name: str) -> tuple[str, ...]:
    return cleaned(_text(folder, name).splitlines())


def _json(folder: Folder, name: str) -> tuple[str, ...]:
    where = f"{folder.label}/{name}"
    values = parsed(_text(folder, name), where)
    key = column(values, CAPTION_COLUMNS)
    if key is None:
        raise DataError(f'{where} has no key {either(NAMED_CAPTIONS)}: expected {{"caption": "..."}}')
    return captions_of(values[key], where)


def _text(folder: Folder, name: str) -> str:
    label = f"{folder.label}/{name}"
    most = MOST_OF_A_TABLE if is_table(name) else MOST_BESIDE
    try:
        if (size := folder.size(name)) > most:
            raise DataError(f"{label} has {size:,} bytes, and captions at most {most:,}: split it, or leave it out")
        return decoded(folder.read(name), label)
    except OSError as error:
        raise DataError(f"can't read the captions in {label}: {error.strerror or error}") from None
