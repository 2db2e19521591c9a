"""Ctrl-C and SIGTERM: a training finishes its step and saves its state before the process ends; other work leaves no
half-written file."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TERMINATED = 128 + signal.SIGTERM  # as shells report it

Stop = Callable[[], int | None]  # the signal that asked this process to stop, if there was one


class Stopped(KeyboardInterrupt):
    """Ctrl-C in a training, which has saved its state."""


class Terminated(SystemExit):
    """SIGTERM; `code` is 0 in a training that has saved its state, elsewhere 143."""


def ending(number: int, words: str) -> Stopped | Terminated:
    """What ends a training that was asked to stop and has saved its state."""
    return Stopped(words) if number == signal.SIGINT else Terminated(0)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yields a question: which signal asked this process to stop? A second Ctrl-C stops it at once.

    Outside the main thread, where Python delivers no signals, the answer is always None.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    with _handling(dict.fromkeys(SIGNALS, ask)):
        yield lambda: asked[0] if asked else None


@contextmanager
def unwound_on_signals() -> Iterator[Stop]:
    """Inside, SIGTERM raises `Terminated` and Ctrl-C KeyboardInterrupt, so that temporary files go as they do after an
    error. Yields a question: which of them came?

    A library may make another error of what is raised, and then only the answer tells. Where Ctrl-C is ignored, as by
    what a shell runs in the background, it stays so.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(TERMINATED)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with _handling(dict.fromkeys(SIGNALS if usual else [signal.SIGTERM], end)):
        yield lambda: came[0] if came else None


@contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
