"""Numbers as callers have them: numpy's and tensors' become Python's own, which settings and files of JSON take."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

LISTS = ("seeds", "dimensions")  # arguments that may be tensors, and are lists of whole numbers then


def plain(value: Any) -> Any:
    """A number without dimensions as Python's own, and those of a list, a dict or a row of numpy's; others as they are.

    Tensors of one dimension are left alone: they are values a row and no settings.
    """
    dimensions = getattr(value, "ndim", None)
    if dimensions == 0 or (dimensions == 1 and not hasattr(value, "requires_grad")):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple) and any(getattr(one, "ndim", None) == 0 for one in value):
        return [plain(one) for one in value]
    return value


def plain_numbers(function: Callable[P, R]) -> Callable[P, R]:
    """Of a public function: wherever it takes a number, one of numpy's or a tensor without dimensions does as well."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = [plain(value) for value in args]
        named: Any = {name: plain(value) for name, value in kwargs.items()}
        named |= {name: named[name].tolist() for name in LISTS if hasattr(named.get(name), "tolist")}
        return function(*given, **named)

    return called


def plain_fields(settings: type[S]) -> type[S]:
    """The same of a dataclass of settings; goes round `@dataclass`."""
    settings.__init__ = plain_numbers(settings.__init__)  # type: ignore[method-assign]
    return settings
