"""Threads that share parts of a pipeline: who makes what is missing, who is at work with what, who must be alone.

What is made when it is first needed is made under `making`, one thing at a time. That is one lock for all, since one
thing is made of others, and with a lock each two threads could wait for each other. Who works waits for nobody but for
a part that another thread has in other numbers for a while.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, RLock, get_ident
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

from torch import nn

V = TypeVar("V")

making = RLock()

_turn = Condition()
_workers: WeakKeyDictionary[nn.Module, Counter[int]] = WeakKeyDictionary()  # how often each thread has begun
_paused: set[int] = set()  # threads that wait to be alone, and so don't compute
_alone: dict[nn.Module, int] = {}  # one part at most, and whose it is


class MadeOnce(Generic[V]):
    """A property that is made when it is first asked for, and then kept; threads that ask together have the same.

    `functools.cached_property` has no lock from Python 3.12 on, and before that one of its own.
    """

    def __init__(self, make: Callable[[Any], V]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> "MadeOnce[V]": ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> V: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> "MadeOnce[V] | V":
        if instance is None:
            return self
        with making:
            if self._name not in vars(instance):
                vars(instance)[self._name] = self._make(instance)
            return vars(instance)[self._name]


def begin(module: nn.Module) -> None:
    """This thread is at work with the part from now on; it waits where another has it alone."""
    me = get_ident()
    with _turn:
        _turn.wait_for(lambda: _alone.get(module, me) == me)
        _workers.setdefault(module, Counter())[me] += 1


def end(module: nn.Module) -> None:
    """What one `begin` began."""
    me = get_ident()
    with _turn:
        if module in _workers and _workers[module][me]:
            _workers[module][me] -= 1
            _turn.notify_all()


def leave(module: nn.Module) -> None:
    """All that this thread began; ends that are still to come find nothing to do."""
    with _turn:
        if module in _workers:
            _workers[module].pop(get_ident(), None)
            _turn.notify_all()


def nobody_at(module: nn.Module) -> bool:
    """Whether no thread is at work with the part."""
    with _turn:
        return not any(_workers.get(module, Counter()).values())


@contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """Inside, no other thread computes with the part: those at work with it have ended, or wait to be alone as well."""
    me = get_ident()
    with _turn:
        _paused.add(me)
        _turn.notify_all()
        try:
            _turn.wait_for(lambda: not _alone and _others(module, me) <= _paused)
        finally:
            _paused.remove(me)
        _alone[module] = me
    try:
        yield
    finally:
        with _turn:
            del _alone[module]
            _turn.notify_all()


def _others(module: nn.Module, me: int) -> set[int]:
    return {thread for thread, times in _workers.get(module, Counter()).items() if times and thread != me}
