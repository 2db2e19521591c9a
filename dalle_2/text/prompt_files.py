"""Prompts from a file or the standard input: one a line, with comments."""

import sys
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from dalle_2.errors import UsageError
from dalle_2.paths import at_home
from dalle_2.plain_text import NotText, decoded, lines_of

MOST_BYTES = 2**26
STANDARD_INPUT, COMMENT, LITERAL = "-", "#", r"\#"


def prompts_from(name: str | Path) -> list[str]:
    """The prompts of a file, or of the standard input where `name` is "-".

    One a line; blank lines and those that begin with # are left out, and a prompt that begins with # is written \\#.
    The file is read as `plain_text.decoded` says. Raises UsageError if it can't be read, is longer than a million
    prompts are, or holds none.
    """
    called = "standard input" if str(name) == STANDARD_INPUT else str(name)
    try:
        text = _standard_input() if str(name) == STANDARD_INPUT else _text_of(at_home(name))
    except (OSError, NotText, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"can't read prompts from {called}: {reason}") from None
    prompts = list(_prompts(text))
    if not prompts:
        raise UsageError(f"{called} holds no prompt: write one a line")
    return prompts


def _text_of(path: Path) -> str:
    with path.open("rb") as file:  # which may be a pipe, of a shell's <(...)
        return decoded(_bounded(file))


def _bounded(file: BufferedIOBase) -> bytes:
    """All of what may have no end. Raises NotText for more than prompts could be."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise NotText(f"it has more than {MOST_BYTES:,} bytes: give fewer at once")
    return content


def _standard_input() -> str:
    """What comes in, by its bytes where it has some: a locale of ASCII or cp1252 says nothing of a piped file."""
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read() if sys.stdin is not None else ""
    return decoded(_bounded(buffer), locale=sys.stdin.encoding or "utf-8")


def _prompts(text: str) -> Iterator[str]:
    for line in lines_of(text):
        if line and not line.startswith(COMMENT):
            yield line.removeprefix("\\") if line.startswith(LITERAL) else line
