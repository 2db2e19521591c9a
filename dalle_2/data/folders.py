"""A folder to read from, on the disk or behind an fsspec address; names in it are relative to it."""

import os
import posixpath
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import fsspec

from dalle_2.errors import DataError, MissingExtra
from dalle_2.paths import at_home, require_plain_file


class Unreachable(DataError):
    """A file couldn't be fetched, which says nothing about the file."""


RUBBISH = (
    "__MACOSX",
    "@eaDir",
    "$RECYCLE.BIN",
    "lost+found",
    "Thumbs.db",
    "desktop.ini",
)  # what systems leave beside pictures


class Listed(NamedTuple):
    """What lies in a folder: sorted names of files, with `/` between; and of links that lead out of it and are not
    followed, those to folders with a `/` at the end. What is hidden or left by a system is in neither."""

    names: tuple[str, ...]
    outside: tuple[str, ...] = ()


class Folder(ABC):
    """Reads only what lies inside, unless it was opened to follow links: `escapes` says which names would leave it."""

    label: str

    @abstractmethod
    def listed(self) -> Listed:
        """Every file below."""

    @abstractmethod
    def is_file(self, name: str) -> bool:
        """True for a file that is there."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file. Raises OSError if it is gone, or a pipe or a device, as the next two do."""

    def stamp(self, name: str) -> tuple[int, int]:
        """Bytes of a file, and when it was last written in nanoseconds, 0 where nobody says. Raises OSError."""
        return self.size(name), 0

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file. Raises OSError, or Unreachable where a network lies between."""

    @abstractmethod
    def local(self, name: str) -> AbstractContextManager[Path]:
        """A path on the disk with the file's content, for as long as the context lasts. Raises OSError."""

    def within(self, name: str) -> str:
        """An absolute path to something in this folder as a name in it; any other name as it is."""
        return name

    def names_outside(self, name: str) -> bool:
        """True if the name itself leads out of the folder, by `..` or by an absolute path, or can be no file's."""
        absolute = posixpath.isabs(name) or os.path.isabs(name) or PureWindowsPath(name).is_absolute()
        return absolute or ".." in name.replace("\\", "/").split("/") or "\0" in name

    def escapes(self, name: str) -> bool:
        """True if what is there by that name lies outside: by its name, or by a link."""
        return self.names_outside(name)


class LocalFolder(Folder):
    """A folder on the disk. follow_links: also out of it, and what a name with `..` or an absolute path leads to.

    A snapshot in the cache of the Hugging Face hub is links into the `blobs` of its repository, which count as inside.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        if not root.is_dir():
            problem = "is a file" if root.exists() else "doesn't exist"
            raise DataError(f"the data folder {root} {problem}: name a folder of pictures with captions")
        self.root, self.follow_links = root, follow_links
        self.label = str(root)
        self._real = os.path.realpath(root)
        self._inside = (self._real, *_blobs(Path(self._real)))

    def listed(self) -> Listed:
        found: list[str] = []
        outside: list[str] = []
        entered: set[str] = set()
        waiting = deque([""])
        while waiting:
            below = waiting.popleft()
            if (real := os.path.realpath(self.root / below)) in entered:  # by way of a link
                continue
            entered.add(real)
            for entry in _entries(self.root / below):
                name, is_folder = below + entry.name, _is_folder(entry)
                leads_out = entry.is_symlink() and self._leads_out(name)
                if leads_out and not self.follow_links:
                    outside.append(name + "/" * is_folder)
                elif not is_folder:
                    found.append(name)
                elif entry.is_symlink():  # last: what it leads to is listed where it lies, unless that is hidden
                    waiting.append(f"{name}/")
                else:
                    waiting.appendleft(f"{name}/")
        return Listed(tuple(sorted(found)), tuple(sorted(outside)))

    def is_file(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.root, name))

    def size(self, name: str) -> int:
        return os.path.getsize(self._plain(name))

    def stamp(self, name: str) -> tuple[int, int]:
        stat = os.stat(os.path.join(self.root, name))
        return stat.st_size, stat.st_mtime_ns

    def read(self, name: str) -> bytes:
        return self._plain(name).read_bytes()

    def local(self, name: str) -> AbstractContextManager[Path]:
        return nullcontext(self._plain(name))

    def _plain(self, name: str) -> Path:
        require_plain_file(self.root / name)
        return self.root / name

    def within(self, name: str) -> str:
        homes = (self._real, os.path.abspath(self.root)) if os.path.isabs(name) else ()
        home = next((home for home in homes if Path(name).is_relative_to(home)), None)
        return name if home is None else os.path.relpath(name, home).replace(os.sep, "/")

    def names_outside(self, name: str) -> bool:
        return "\0" in name if self.follow_links else super().names_outside(name)

    def escapes(self, name: str) -> bool:
        return self.names_outside(name) or (not self.follow_links and self._leads_out(name))

    def _leads_out(self, name: str) -> bool:
        try:
            real = Path(os.path.realpath(self.root / name))
        except ValueError:  # no possible name: a zero byte, half a character
            return True
        return not any(real.is_relative_to(home) for home in self._inside)


class RemoteFolder(Folder):
    """A folder of any file system that fsspec knows: s3://bucket/folder, memory://folder, ..."""

    def __init__(self, url: str) -> None:
        self.label = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
            self._root = root.rstrip("/")
            listed: dict[str, Any] = self._fs.find(self._root, detail=True)
        except ImportError as error:
            raise _missing_package(url, error) from None
        except Exception as error:  # each file system has errors of its own
            raise DataError(f"can't read the data folder {url}: {error}") from error
        self._sizes = {path[len(self._root) :].lstrip("/"): int(info.get("size") or 0) for path, info in listed.items()}
        if not self._sizes:
            raise DataError(f"the data folder {url} doesn't exist or is empty: check the address and the credentials")

    def listed(self) -> Listed:
        shown = (name for name in self._sizes if not any(map(_is_hidden, name.split("/"))))
        return Listed(tuple(sorted(shown)))

    def is_file(self, name: str) -> bool:
        return name in self._sizes

    def size(self, name: str) -> int:
        return self._sizes[name]

    def read(self, name: str) -> bytes:
        try:
            content: bytes = self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise Unreachable(f"can't fetch {name} from {self.label}: {error}") from error
        return content

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / posixpath.basename(name)
            path.write_bytes(self.read(name))
            yield path


def open_folder(root: str | os.PathLike[str], *, follow_links: bool = False) -> Folder:
    """The folder at a path or at an address with `://`. follow_links: also out of one on the disk.

    Raises DataError if there is none, MissingExtra for s3 without s3fs.
    """
    text = os.fspath(root)
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")), follow_links=follow_links)
    if "://" in text:
        return RemoteFolder(text)
    return LocalFolder(at_home(text), follow_links=follow_links)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"can't list the data folder {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in RUBBISH


def _blobs(real: Path) -> list[str]:
    """Where the files of a snapshot in the hub's cache lie; none for any other folder."""
    snapshots = (place for place in (real, *real.parents) if place.parent.name == "snapshots")
    blobs = (os.path.realpath(place.parents[1] / "blobs") for place in snapshots)
    return [place for place in blobs if os.path.isdir(place)]


def _missing_package(url: str, error: ImportError) -> Exception:
    scheme = url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        return MissingExtra("s3", "s3fs", f"reading {scheme}:// folders")
    return DataError(f"can't read {url}: {error}")
