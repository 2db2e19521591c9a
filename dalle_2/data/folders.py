"""A folder to read from, on the disk or behind an fsspec address; names in it are relative to it."""

import os
import posixpath
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import fsspec

from dalle_2.errors import DataError, MissingExtra


class Unreachable(DataError):
    """A file couldn't be fetched, which says nothing about the file."""


class Folder(ABC):
    """Reads only what lies inside: `escapes` says which names would leave it."""

    label: str

    @abstractmethod
    def names(self) -> list[str]:
        """Every file below, sorted, with `/` between; hidden ones left out. Linked folders end in `/`."""

    @abstractmethod
    def is_file(self, name: str) -> bool:
        """True for a file that is there."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file. Raises OSError if it is gone."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file. Raises OSError, or Unreachable where a network lies between."""

    @abstractmethod
    def local(self, name: str) -> AbstractContextManager[Path]:
        """A path on the disk with the file's content, for as long as the context lasts. Raises OSError."""

    def is_link(self, name: str) -> bool:
        """True for a symbolic link; where it leads, `escapes` finds out."""
        return False

    def escapes(self, name: str) -> bool:
        """True if the name leads out of the folder, by `..`, by an absolute path, or by a link."""
        return posixpath.isabs(name) or os.path.isabs(name) or ".." in name.replace("\\", "/").split("/")


class LocalFolder(Folder):
    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            problem = "is a file" if root.exists() else "doesn't exist"
            raise DataError(f"the data folder {root} {problem}: name a folder of pictures with captions")
        self.root = root
        self.label = str(root)
        self._real = os.path.realpath(root)

    def names(self) -> list[str]:
        found: list[str] = []
        for folder, subfolders, files in os.walk(self.root, onerror=_refuse):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            below = Path(folder).relative_to(self.root)
            found += [(below / name).as_posix() for name in files if not name.startswith(".")]
            linked = (name for name in subfolders if os.path.islink(os.path.join(folder, name)))
            found += [(below / name).as_posix() + "/" for name in linked]  # which `walk` doesn't enter
        return sorted(found)

    def is_file(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.root, name))

    def size(self, name: str) -> int:
        return os.path.getsize(self.root / name)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def local(self, name: str) -> AbstractContextManager[Path]:
        return nullcontext(self.root / name)

    def is_link(self, name: str) -> bool:
        return os.path.islink(self.root / name.rstrip("/"))

    def escapes(self, name: str) -> bool:
        if super().escapes(name):
            return True
        try:
            real = os.path.realpath(self.root / name)
        except ValueError:  # no possible name: a zero byte, half a character
            return True
        return os.path.commonpath([self._real, real]) != self._real


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
        self._sizes = {
            path[len(self._root) :].lstrip("/"): int(info.get("size") or 0) for path, info in listed.items()
        }
        if not self._sizes:
            raise DataError(
                f"the data folder {url} doesn't exist or is empty: check the address and the credentials"
            )

    def names(self) -> list[str]:
        return sorted(
            name for name in self._sizes if not any(part.startswith(".") for part in name.split("/"))
        )

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


def open_folder(root: str | os.PathLike[str]) -> Folder:
    """The folder at a path or at an address with `://`.

    Raises DataError if there is none, MissingExtra for s3 without s3fs.
    """
    text = os.fspath(root)
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    return RemoteFolder(text) if "://" in text else LocalFolder(Path(text).expanduser())


def _refuse(error: OSError) -> None:
    raise DataError(f"can't list the data folder {error.filename}: {error.strerror}") from error


def _missing_package(url: str, error: ImportError) -> Exception:
    scheme = url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        return MissingExtra("s3", "s3fs", f"reading {scheme}:// folders")
    return DataError(f"can't read {url}: {error}")
