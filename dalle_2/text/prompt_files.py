"""Prompts from a file or the standard input: one a line, with comments."""

import sys
from collections.abc import Iterator
from pathlib import Path

from dalle_2.errors import UsageError
from dalle_2.paths import at_home
from dalle_2.plain_text import NotText, decoded, lines_of

STANDARD_INPUT, COMMENT, LITERAL = "-", "#", r"\#"


def prompts_from(name: str | Path) -> list[str]:
    """The prompts of a file, or of the standard input where `name` is "-".

    One a line; blank lines and those that begin with # are left out, and a prompt that begins with # is written \\#.
    The file is read as `plain_text.decoded` says. Raises UsageError if it can't be read, and if it holds no prompt.
    """
    called = "standard input" if str(name) == STANDARD_INPUT else str(name)
    try:
        text = _standard_input() if str(name) == STANDARD_INPUT else decoded(at_home(name).read_bytes())
    except (OSError, NotText, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"can't read prompts from {called}: {reason}") from None
    prompts = list(_prompts(text))
    if not prompts:
        raise UsageError(f"{called} holds no prompt: write one a line")
    return prompts


def _standard_input() -> str:
    """What comes in, by its bytes where it has some: a locale of ASCII or cp1252 says nothing of a piped file."""
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read() if sys.stdin is not None else ""
    return decoded(buffer.read(), locale=sys.stdin.encoding or "utf-8")


def _prompts(text: str) -> Iterator[str]:
    for line in lines_of(text):
        if line and not line.startswith(COMMENT):
            yield line.removeprefix("\\") if line.startswith(LITERAL) else line
