"""What a prompt must be before any work is done on it."""

from collections.abc import Sequence

from dalle_2.errors import UsageError

MAX_CHARACTERS = 10_000  # a picture's own metadata, where prompts are kept, holds little more


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list; a lone string counts as one.

    Raises UsageError for none at all, and for one that is empty, too long, or no valid text.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise UsageError("there is no prompt: say what the picture should show")
    for number, prompt in enumerate(listed, start=1):
        which = "the prompt" if len(listed) == 1 else f"prompt {number} of {len(listed)}"
        _check(prompt, which)
    return listed


def _check(prompt: str, which: str) -> None:
    if not isinstance(prompt, str):
        raise UsageError(f"{which} must be a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise UsageError(f"{which} is empty: say what the picture should show")
    if len(prompt) > MAX_CHARACTERS:
        raise UsageError(f"{which} has {len(prompt):,} characters, at most {MAX_CHARACTERS:,} are taken: shorten it")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{which} is not valid text: write it in UTF-8") from None
