"""Tables of captions, as text -> rows: csv with any usual delimiter, and one JSON object a line."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from dalle_2.data.caption_text import captions_of, cleaned, parsed, shortened
from dalle_2.errors import DataError

# In order of preference, without case, blanks, hyphens and underscores; the first few are those that messages name.
FILE_COLUMNS = (
    "file", "filename", "image", "path", "filepath", "imagefile", "imagefilename", "imagename", "imagepath", "picture",
    "img", "imgpath", "photo",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "text", "captions", "texts", "prompt", "prompts", "description", "comment", "sentence")
NAMED_FILES, NAMED_CAPTIONS = ("file", "file_name", "image", "path"), ("caption", "text")
LINE = re.compile(r"[^\r\n]*")
DELIMITERS = (",", "\t", ";", "|")
LONGEST = 2**31 - 1  # of a field, where csv would stop at 131,072: another column may hold a picture


class Unusable(DataError):
    """A table that is sound and says no caption."""


class Row(NamedTuple):
    """A line of a table: the file as it is written there, and its captions."""

    line: int
    file: str
    captions: tuple[str, ...]


def rows_of(text: str, table: str, label: str) -> list[Row]:
    """The rows of a table, whose kind its name tells.

    Raises Unusable for one without a column of captions, and DataError for one without a column of files, for a row
    that names no file, and for what is no csv or no JSON.
    """
    return _jsonl_rows(text, label) if table.lower().endswith(".jsonl") else _csv_rows(text, label)


def column(names: Iterable[Any], known: Sequence[str]) -> Any:
    """The first of the known columns that is among these names, in its own spelling; None if there is none."""
    spelt = {_plain(str(name)): name for name in names}
    return next((spelt[name] for name in known if name in spelt), None)


def either(names: Sequence[str]) -> str:
    """Some names as a choice."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _plain(name: str) -> str:
    return "".join(name.lower().split()).replace("_", "").replace("-", "").strip("\ufeff\"'")


# csv


class _Heading(NamedTuple):
    """The columns of a csv by name, and by number the two that are read; the delimiter; how many lines are before."""

    names: list[str]
    file: int
    caption: int
    delimiter: str
    before: int


def _csv_rows(text: str, label: str) -> list[Row]:
    before, text = _without_preamble(text)
    lines = len(before)
    with _long_fields():
        delimiter = _delimiter(text, before)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            file, caption = (names.index(name) for name in _both(names, label))
            heading = _Heading(names, file, caption, delimiter, lines)
            return [
                _csv_row(row, heading, reader.line_num + lines, label) for row in reader if any(map(str.strip, row))
            ]
        except csv.Error as error:
            raise DataError(f"{label} line {reader.line_num + lines} is not csv: {error}") from None


def _csv_row(fields: list[str], heading: _Heading, line: int, label: str) -> Row:
    if len(fields) > len(heading.names):
        fields = _joined(fields, heading, f"{label} line {line}")
    file, caption = (fields[at] if at < len(fields) else "" for at in (heading.file, heading.caption))
    return Row(line, _file(file, label, line), cleaned([caption]))


def _joined(fields: list[str], heading: _Heading, where: str) -> list[str]:
    """A row in which the last column, if that is the caption, has its own delimiters back that nothing quoted."""
    width = len(heading.names)
    if not any(map(str.strip, fields[width:])):
        return fields
    if heading.caption != width - 1:
        raise DataError(
            f"{where} has {len(fields)} fields where the heading has {width}: put those that hold a "
            f"{heading.delimiter!r} between quotation marks"
        )
    return [*fields[: heading.caption], heading.delimiter.join(fields[heading.caption :])]


def _without_preamble(text: str) -> tuple[list[str], str]:
    """The lines before the heading, empty ones and Excel's "sep=;", and the rest."""
    before: list[str] = []
    at = 0
    while at < len(text) and (not (line := _line(text, at)).strip() or line.lower().startswith("sep=")):
        before.append(line)
        at += len(line)
        at += 2 if text.startswith("\r\n", at) else 1
    return before, text[at:]


def _delimiter(text: str, before: Sequence[str]) -> str:
    """The one that the file itself tells, else the one by which the heading has columns that are known, or the most."""
    told = [line[4] for line in before if line[4:5] in DELIMITERS]
    if told:
        return told[-1]
    columns = {mark: next(csv.reader([_line(text)], delimiter=mark), []) for mark in DELIMITERS}
    known = (mark for mark in DELIMITERS if None not in _found(columns[mark]))
    return next(known, max(DELIMITERS, key=lambda mark: len(columns[mark])))


def _line(text: str, at: int = 0) -> str:
    """The line that begins there, without its end."""
    found = LINE.match(text, at)
    return found[0] if found else ""


@contextmanager
def _long_fields() -> Iterator[None]:
    usual = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


# JSON lines


def _jsonl_rows(text: str, label: str) -> list[Row]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    known: dict[tuple[str, ...], tuple[Any, Any]] = {}
    rows = [_jsonl_row(line, f"{label} line {number}", number, label, known) for number, line in lines]
    if rows and all(caption is None for _, caption in known.values()):
        _both(next(iter(known)), label)
    return rows


def _jsonl_row(text: str, where: str, line: int, label: str, known: dict[tuple[str, ...], tuple[Any, Any]]) -> Row:
    """known: the columns of rows that came before, by their keys. A row of no caption has no caption."""
    values = parsed(text, where)
    keys = tuple(values)
    if keys not in known:
        known[keys] = _found(keys)
    file, caption = known[keys]
    if file is None:
        raise DataError(_unknown(keys, where))
    return Row(line, _file(values[file], label, line), captions_of(values.get(caption), where))


# Both


def _found(names: Iterable[Any]) -> tuple[Any, Any]:
    """The columns of files and of captions; None for one that isn't there."""
    names = list(names)
    return column(names, FILE_COLUMNS), column(names, CAPTION_COLUMNS)


def _both(names: Sequence[Any], where: str) -> tuple[Any, Any]:
    """The same of a table that must have both."""
    file, caption = _found(names)
    if file is None or caption is None:
        raise (Unusable if caption is None else DataError)(_unknown(names, where))
    return file, caption


def _unknown(names: Sequence[Any], where: str) -> str:
    return (
        f"{where} has the columns {_shown(names) or 'none'}; expected {either(NAMED_FILES)} for the "
        f"picture and {either(NAMED_CAPTIONS)} for its caption"
    )


def _shown(names: Sequence[Any], most: int = 20) -> str:
    """The first of some names, each on one line, not all of a long one."""
    words = [shortened(str(name)) for name in names[:most]]
    return ", ".join([*words, f"... and {len(names) - most} more"] if len(names) > most else words)


def _file(value: Any, label: str, line: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{label} line {line} names no picture: expected a file name, got {shortened(repr(value))}")
    return value.strip()
