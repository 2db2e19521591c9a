"""What becomes of memory that a network frees between its layers.

glibc keeps freed blocks of some megabytes to use them again. Where sizes differ much they fit together badly, and as
much again is lost between them. Where memory matters more than time it is told to give them back at once. Other C
libraries, and a glibc that the environment has told something else, are left alone.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # the numbers of glibc's malloc.h
# In bytes: blocks from the second on are given back at once, smaller ones where as many as the first lie together.
LEAN = {TRIM_THRESHOLD: 2**20, MMAP_THRESHOLD: 2**20}
USUAL = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25}  # what glibc arrives at by itself where blocks are large

_lock = Lock()
_inside = [0]  # how many are, in all threads


@contextmanager
def freed_at_once(wished: bool = True) -> Iterator[None]:
    """Inside, if `wished`, freed memory is given back at once, beginning with what has been kept."""
    library = _glibc()
    if library is None or not wished or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        yield
        return
    with _lock:
        _inside[0] += 1
        _set(library, LEAN)
        library.malloc_trim(0)
    try:
        yield
    finally:
        with _lock:
            _inside[0] -= 1
            if not _inside[0]:
                _set(library, USUAL)


def _set(library: Any, settings: dict[int, int]) -> None:
    for name, value in settings.items():
        library.mallopt(name, value)


@cache
def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # there is no such thing on Windows
        return None
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "malloc_trim") else None
