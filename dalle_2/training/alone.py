"""One training at a time in a folder: two would write over each other's states."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dalle_2.errors import UsageError

PATIENCE = 0.2  # seconds


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder while the block runs; one that dies lets them in again.

    Raises UsageError if another one is at work there.
    """
    from huggingface_hub.utils import WeakFileLock

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(folder / ".lock", timeout=PATIENCE))
        except TimeoutError:
            raise UsageError(f"another training is at work in {folder}: wait for it, or choose another --out") from None
        yield
