"""Bytes of caption files -> text -> captions of one clean line."""

import codecs
import unicodedata
from collections.abc import Sequence
from typing import Any

from dalle_2.errors import DataError
from dalle_2.json_file import parsed as plain_json

# The mark that a file begins with -> how it is encoded. UTF-32 first: its mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
LOOKED_AT = 4096


def decoded(content: bytes, label: str) -> str:
    """A file's text: UTF-8, or UTF-16 and UTF-32 as Excel and PowerShell write them.

    Raises DataError for anything else: which letters an older encoding means can't be told from the bytes.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None) or _without_mark(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise DataError(f"{label} is not {name} (byte {error.start}): save it as UTF-8") from None


def _without_mark(content: bytes) -> str:
    """UTF-8, but for zero bytes, which no text in UTF-8 has: in UTF-16 every Latin letter has one."""
    low, high = (content[first:LOOKED_AT:2].count(0) for first in (0, 1))
    if not low and not high:
        return "utf-8-sig"
    return "utf-16-le" if high > low else "utf-16-be"


def normalise(text: str) -> str:
    """One line without leading, trailing or repeated white space, its accents in one form."""
    if text.isascii():
        return " ".join(text.split())
    whole = text.encode("utf-8", "replace").decode()  # JSON can hold half a character
    return " ".join(unicodedata.normalize("NFC", whole).split())


def shortened(text: str, most: int = 80) -> str:
    """A stranger's text as a sentence may quote it: on one line, its end cut off."""
    line = " ".join(text[: most + 1].split())
    return line if len(text) <= most else f"{line[: most - 3]}..."


def cleaned(captions: Sequence[str]) -> tuple[str, ...]:
    """Those that say something, normalised."""
    return tuple(caption for caption in map(normalise, captions) if caption)


def captions_of(value: Any, where: str) -> tuple[str, ...]:
    """The captions in a value of JSON: a text, a list of texts, or none. Raises DataError for anything else."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) or caption is None for caption in values):
        raise DataError(f"the caption in {where} must be a text or a list of texts, got {str(value)[:60]!r}")
    return cleaned([caption or "" for caption in values])


def parsed(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    try:
        values = plain_json(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f'{where} must be a JSON object such as {{"caption": "..."}}, got {text[:60]!r}')
    return values
