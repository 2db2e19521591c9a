"""Numbers as callers have them: Python's own, numpy's, and tensors of no dimension."""

from collections.abc import Iterable
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

Real: TypeAlias = SupportsFloat
Whole: TypeAlias = SupportsIndex
Wholes: TypeAlias = Iterable[SupportsIndex]  # a list, a range, an array or a tensor of them


def plain(value: Any) -> Any:
    """A number as Python's own, which files of JSON take; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def plain_rows(values: Wholes) -> list[Any]:
    """The numbers of a row, each as Python's own."""
    return [plain(value) for value in values]
