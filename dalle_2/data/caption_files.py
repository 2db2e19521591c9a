"""Captions beside pictures: NAME.txt, NAME.json, or one table at the root of the folder."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from dalle_2.data.folders import Folder
from dalle_2.errors import DataError

TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file", "file_name", "image", "path")
CAPTION_COLUMNS = ("caption", "text")

# picture -> its captions, normalised; an empty tuple where there are none
Captions = dict[str, tuple[str, ...]]
# line number, file, captions
_Row = tuple[int, str, tuple[str, ...]]


def read_captions(folder: Folder, pictures: Sequence[str], names: frozenset[str]) -> Captions:
    """The captions of each of `pictures`, and of what else the table names. `names`: every file of the
    folder.

    Raises DataError for captions that are not UTF-8, broken JSON or csv, a table without known columns, and
    a table that names files that are missing or lie outside the folder.
    """
    tables = [name for name in TABLES if name in names]
    if len(tables) > 1:
        raise DataError(f"{folder.label} has {' and '.join(tables)}: keep one table of captions")
    if tables:
        return dict.fromkeys(pictures, ()) | _table(folder, tables[0])
    return {picture: _beside(folder, picture, names) for picture in pictures}


def normalise(text: str) -> str:
    """One line without leading, trailing or repeated white space."""
    whole = text.encode("utf-8", "replace").decode()  # JSON can hold half a character
    return " ".join(whole.split())


# Files beside pictures


def _beside(folder: Folder, picture: str, names: frozenset[str]) -> tuple[str, ...]:
    stem = picture[: -len(PurePosixPath(picture).suffix)]
    for name, parse in ((f"{stem}.txt", _lines), (f"{stem}.json", _json)):
        if name in names and (captions := parse(folder, name)):
            return captions
    return ()


def _lines(folder: Folder, name: str) -> tuple[str, ...]:
    return _clean(_text(folder, name).splitlines())


def _json(folder: Folder, name: str) -> tuple[str, ...]:
    values = _parsed(_text(folder, name), f"{folder.label}/{name}")
    key = _column(values, CAPTION_COLUMNS)
    if key is None:
        raise DataError(
            f'{folder.label}/{name} has no key {_either(CAPTION_COLUMNS)}: expected {{"caption": "..."}}'
        )
    return _captions(values[key], f"{folder.label}/{name}")


# Tables


def _table(folder: Folder, table: str) -> Captions:
    label = f"{folder.label}/{table}"
    text = _text(folder, table)
    rows = _csv_rows(text, label) if table.endswith(".csv") else _jsonl_rows(text, label)
    captions: Captions = {}
    missing = []
    for line, name, found in rows:
        if folder.escapes(name):
            raise DataError(
                f"{label} line {line} names {name!r}, which leads out of the folder: name files inside it"
            )
        if not folder.is_file(name):
            missing.append(name)
        captions[name] = captions.get(name, ()) + found
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{label} names {len(missing)} files that don't exist ({shown}): correct the table or add them"
        )
    if not captions:
        raise DataError(f"{label} names no pictures: expected a row for each, with a file and a caption")
    return captions


def _csv_rows(text: str, label: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or ()
        file, caption = _columns(dict.fromkeys(columns), label)
        for row in reader:
            yield reader.line_num, _file(row[file], label, reader.line_num), _clean([row[caption] or ""])
    except csv.Error as error:
        raise DataError(f"{label} line {reader.line_num} is not csv: {error}") from None


def _jsonl_rows(text: str, label: str) -> Iterator[_Row]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            where = f"{label} line {line}"
            values = _parsed(content, where)
            file, caption = _columns(values, where)
            yield line, _file(values[file], label, line), _captions(values[caption], where)


def _columns(row: dict[Any, Any], where: str) -> tuple[str, str]:
    file, caption = _column(row, FILE_COLUMNS), _column(row, CAPTION_COLUMNS)
    if file is None or caption is None:
        found = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"{where} has the columns {found}; expected {_either(FILE_COLUMNS)} for the picture "
            f"and {_either(CAPTION_COLUMNS)} for its caption"
        )
    return file, caption


def _column(row: dict[Any, Any], known: Sequence[str]) -> str | None:
    """The row's own spelling of the first known name it has."""
    spelling = {str(name).strip().lower(): name for name in row}
    return next((spelling[name] for name in known if name in spelling), None)


def _file(value: Any, label: str, line: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{label} line {line} names no picture: expected a file name, got {value!r}")
    return str(PurePosixPath(value.strip()))  # "./a.png" and "a.png" are one picture


# Text


def _captions(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) or caption is None for caption in values):
        raise DataError(f"the caption in {where} must be a text or a list of texts, got {str(value)[:60]!r}")
    return _clean([caption or "" for caption in values])


def _clean(captions: Sequence[str]) -> tuple[str, ...]:
    return tuple(caption for caption in map(normalise, captions) if caption)


def _parsed(text: str, where: str) -> dict[Any, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f'{where} must be a JSON object such as {{"caption": "..."}}, got {text[:60]!r}')
    return values


def _text(folder: Folder, name: str) -> str:
    try:
        return folder.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{folder.label}/{name} is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(
            f"can't read the captions in {folder.label}/{name}: {error.strerror or error}"
        ) from None


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
