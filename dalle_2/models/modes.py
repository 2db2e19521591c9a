"""Training mode and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

_lock = Lock()
# How many are inside, in all threads, and the mode that a module had before the first came.
_inside: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside; when the last thread has left, the model is as it was, since it may be in the middle of its
    training."""
    modules = list(model.modules())
    with _lock:
        for module in modules:
            inside, mode = _inside.get(module, (0, module.training))
            _inside[module] = inside + 1, mode
        model.eval()
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _leave(module)


def _leave(module: nn.Module) -> None:
    inside, mode = _inside.pop(module)
    if inside > 1:
        _inside[module] = inside - 1, mode
    else:
        module.training = mode
