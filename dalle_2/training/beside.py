"""Work in a process of its own beside other work: two small trainings gain little from two threads each, and nearly
twice the speed from a core each."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from dalle_2.errors import Dalle2Error
from dalle_2.terminal import plain_streams
from dalle_2.threads import children_wait_asleep
from dalle_2.training.interrupt import TERMINATED, Terminated, stop_on_signals, unwound_on_signals

Hear = Callable[[Any], None]


@contextmanager
def beside(work: Callable[..., object], *arguments: Any, hear: Hear) -> Iterator[None]:
    """Calls `work(tell, *arguments)` in another process while the block runs, and waits for it at the block's end.

    What the work tells with `tell(message)`, `hear(message)` gets here, in a thread. Work, arguments and messages are
    pickled, and a script that calls this needs the guard `if __name__ == "__main__"`. Whatever ends the block early,
    Ctrl-C too, asks the other process to stop as SIGTERM does, and waits until it has saved its state; so does the
    death of this process.

    Raises, at the block's end, what `work` or else `hear` raised; Dalle2Error if the other process died. So it does
    where Ctrl-C or SIGTERM ended the block and the other process could not save its state.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, work, arguments))
    try:
        with children_wait_asleep(), deaf_to_ctrl_c():
            process.start()
        sender.close()  # the process holds the only other end: its death is the end of the pipe
        with ThreadPoolExecutor(1) as pool:
            listener = pool.submit(_listen, receiver, hear)
            try:
                yield
                end = _waited_for(listener)
            except BaseException as stopped:
                process.terminate()
                end = listener.result()
                process.join()
                if isinstance(stopped, KeyboardInterrupt | Terminated):
                    _check_saved(end, process.exitcode)
                raise
    finally:
        if process.pid is not None:
            process.join()
    if end is None:
        raise Dalle2Error(_death(process.exitcode))
    if end.error is not None:
        raise end.error


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """A process that is started inside hears no Ctrl-C, which a terminal sends to all: this one tells it to stop."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _End:
    """The last message: how the work ended."""

    error: BaseException | None = None


def _check_saved(end: "_End | None", exitcode: int | None) -> None:
    """Raises what kept a process that was asked to stop from saving its state, or Dalle2Error for what killed it."""
    if end is None and exitcode not in (-signal.SIGTERM, TERMINATED):  # so ends one that had nothing to save yet
        raise Dalle2Error(_death(exitcode))
    if end is not None and end.error is not None and not isinstance(end.error, KeyboardInterrupt | SystemExit):
        raise end.error


def _waited_for(listener: "Future[_End | None]") -> _End | None:
    with stop_on_signals() as stop:
        while True:
            with suppress(TimeoutError):
                return listener.result(timeout=0.2)
            if (number := stop()) is not None:  # the other process saves its state when it is asked to stop
                raise KeyboardInterrupt if number == signal.SIGINT else Terminated(TERMINATED)


def _listen(receiver: Connection, hear: Hear) -> _End | None:
    """Hears every message up to the last; None for a process that died without one.

    After an error of `hear` it reads on: the other process would wait for ever before a full pipe.
    """
    failed: _End | None = None
    while True:
        try:
            message = receiver.recv()
        except EOFError:
            return failed
        if isinstance(message, _End):
            return message if message.error or failed is None else failed
        try:
            if failed is None:
                hear(message)
        except Exception as error:
            failed = _End(error)


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"the stage that trained beside this one was killed by {name}: the same command goes on where it stopped"
    return f"the stage that trained beside this one ended with status {exitcode}: --lanes 1 trains one after the other"


def _work(sender: Connection, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    def tell(message: object) -> None:
        with suppress(BrokenPipeError):  # the other side is dead: what is left to do is to stop, and to save before
            sender.send(message)

    threading.Thread(target=_outlive_no_parent, daemon=True).start()
    try:
        with plain_streams(), unwound_on_signals():
            work(tell, *arguments)
    except BaseException as error:
        tell(_End(_sendable(error)))
    else:
        tell(_End())


def _sendable(error: BaseException) -> BaseException:
    """The error itself where it survives the way to another process, with what --debug shows of it."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return Dalle2Error(f"{type(error).__name__}: {error}")
    return error


def _outlive_no_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
