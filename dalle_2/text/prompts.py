"""What a prompt must be before any work is done on it."""

from collections.abc import Iterable, Sequence
from typing import Any

from dalle_2.errors import UsageError

Prompts = str | Sequence[str] | Sequence[Sequence[str]]

MAX_CHARACTERS = 10_000  # a picture's own metadata, where prompts are kept, holds little more


def listed_prompts(prompts: Prompts | Any) -> list[Any]:
    """The prompts as a list of strings: a lone string counts as one, and a prompt may be a list of its words.

    What is neither is left in it as it came.
    """
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    return [_joined(prompt) for prompt in (prompts if several else [prompts])]


def _joined(prompt: Any) -> Any:
    """A prompt's words as one string."""
    words = isinstance(prompt, list | tuple) and all(isinstance(word, str) for word in prompt)
    return " ".join(prompt) if words else prompt


def check_prompts(prompts: Prompts, called: str = "prompt") -> list[str]:
    """The prompts as `listed_prompts` gives them. called: what a message calls one of them.

    A byte order mark at an end of one, which came along from some file, is no part of it.

    Raises UsageError for none at all, and for one that is empty, too long, or no valid text.
    """
    listed = [_unmarked(prompt) for prompt in listed_prompts(prompts)]
    if not listed:
        raise UsageError(f"there is no {called}: {_cure(called)}")
    for number, prompt in enumerate(listed, start=1):
        which = f"the {called}" if len(listed) == 1 else f"{called} {number} of {len(listed)}"
        _check(prompt, which, _cure(called))
    return listed


def _unmarked(prompt: Any) -> Any:
    return prompt.strip("\ufeff") if isinstance(prompt, str) else prompt


def _cure(called: str) -> str:
    return "say what the picture should show" if called == "prompt" else "write one, or leave it out"


def negative_rows(negative: Sequence[str] | str | None, count: int) -> list[str] | None:
    """A negative prompt for each of `count` prompts: the given ones, or one for all; None where there is none.

    Raises UsageError for another number of them, and for one that is empty, too long, or no valid text.
    """
    if negative is None:
        return None
    listed = check_prompts(negative, "negative prompt")
    rows = listed * count if len(listed) == 1 else listed
    if len(rows) != count:
        raise UsageError(f"got {len(rows)} negative prompts for {count} prompts: give one for all, or one a prompt")
    return rows


def _check(prompt: str, which: str, cure: str) -> None:
    if not isinstance(prompt, str):
        raise UsageError(f"{which} must be a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise UsageError(f"{which} is empty: {cure}")
    if len(prompt) > MAX_CHARACTERS:
        raise UsageError(f"{which} has {len(prompt):,} characters, at most {MAX_CHARACTERS:,} are taken: shorten it")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{which} is not valid text: write it in UTF-8") from None
