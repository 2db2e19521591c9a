"""Text that somebody wrote in an editor of theirs: which bytes are which characters."""

import codecs

MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class NotText(ValueError):
    """Bytes that are no text in the encodings that are read; the message says where, and ends with the cure."""


def decoded(data: bytes, *, locale: str = "utf-8") -> str:
    """The text of UTF-8 with or without a byte order mark, or of UTF-16 and UTF-32 with one; the mark goes.

    locale: another encoding, which what has no mark and isn't UTF-8 may be in. Raises NotText for what isn't, too: no
    guess is made between cp1252 and its likes, which read every byte as something.
    """
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    try:
        text = data[len(mark) :].decode(MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        text = _otherwise(data, locale, error)
    if "\0" in text:
        raise NotText("it holds zero bytes, as UTF-16 without its mark does: save it as UTF-8")
    return text


def _otherwise(data: bytes, locale: str, error: UnicodeDecodeError) -> str:
    try:
        return data.decode(locale)
    except (UnicodeDecodeError, LookupError):
        line = data.count(b"\n", 0, error.start) + 1
        raise NotText(f"line {line} is not {error.encoding.upper()}: save it as UTF-8") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, whichever of the three usual ends they have, without white space and stray marks around.

    Unlike `str.splitlines` it leaves rarer separators, such as U+2028, where they are: inside a line.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip().strip("\ufeff").strip() for line in lines]  # files that were joined have marks inside
