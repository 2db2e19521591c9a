"""File operations that fail on purpose: the k-th of a process meets a kill, a broken disk, a full one or a short write.

Python's own ways to the disk are watched, of which everything here is written; reading counts, too.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("kill", "EIO", "ENOSPC", "short")
NAMED = ("replace", "rename", "link", "symlink", "unlink", "mkdir", "rmdir", "open", "chmod", "utime", "truncate")
BY_HANDLE = ("fsync", "ftruncate")


class Disk:
    """What a process writes below `home` goes through here.

    kind: "kill" ends the process in the middle of operation `at`, of a write after half of it; "EIO" fails that one;
    "ENOSPC" fails it and everything after it that needs room; "short" writes half of it before that. at: 0 for none.
    """

    def __init__(self, home: Path, at: int = 0, kind: str = "kill") -> None:
        self.home, self.at, self.kind = os.path.realpath(home), at, kind
        self.count, self.full = 0, False
        self.met: list[str] = []

    def install(self) -> None:
        """From now on, for good: only for a process that ends soon."""
        self._open = builtins.open
        for name in NAMED:
            setattr(os, name, self._watched(name, getattr(os, name)))
        for name in BY_HANDLE:
            setattr(os, name, self._watched_handle(name, getattr(os, name)))
        io.open = builtins.open = self._opened  # type: ignore[assignment]

    def meet(self, name: str, half: Callable[[], object] | None = None, *, needs_room: bool = True) -> None:
        """One operation. half: does the half of it."""
        self.count += 1
        self.met.append(name)
        if self.full and needs_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.count != self.at:
            return
        if half is not None and self.kind in ("kill", "short"):
            half()
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.full = True
        if needs_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        text = os.fsdecode(path)
        return not os.path.isabs(text) or os.path.realpath(os.path.dirname(text)).startswith(self.home)

    def _watched(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **more: Any) -> Any:
            if self._inside(arguments[0]):
                self.meet(name, needs_room=name in ("mkdir", "link", "symlink"))
            return act(*arguments, **more)

        return watched

    def _watched_handle(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def watched(handle: int, *more: Any) -> Any:
            self.meet(name, needs_room=False)
            return act(handle, *more)

        return watched

    def _opened(self, path: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if not self._inside(path):
            return self._open(path, mode, *arguments, **more)
        writes = bool({*mode} & {*"wax+"})
        self.meet(f"open {mode}", needs_room=writes)
        file = self._open(path, mode, *arguments, **more)
        return Watched(file, self) if writes else file


class Watched:
    """A file whose writes a disk knows of."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        """Half of it may get through."""
        whole = data if isinstance(data, str) else memoryview(data).cast("B") if len(data) else data

        def half() -> None:
            self._file.write(whole[: len(whole) // 2])
            self._file.flush()

        self._disk.meet("write", half)
        return int(self._file.write(data))

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
