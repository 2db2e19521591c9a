"""One training at a time in a folder: two would write over each other's states."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dalle_2.errors import UsageError

PATIENCE = 0.2  # seconds
LOCK = ".lock"
LANE_LOCK = ".lock-lane"  # of the process beside the one that was called
LANE_PATIENCE = 60.0  # for what is left of a killed command: it finishes its step, and saves


@contextmanager
def alone(folder: Path, lock: str = LOCK, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps other processes out of a run folder while the block runs; one that dies lets them in again.

    Raises UsageError if another one is at work there, and still is after so many seconds.
    """
    from huggingface_hub.utils import WeakFileLock

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(folder / lock, timeout=patience))
        except TimeoutError:
            raise UsageError(f"another training is at work in {folder}: wait for it, or choose another --out") from None
        yield
