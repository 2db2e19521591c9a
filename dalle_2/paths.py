"""Where things lie, and how a file is written: a crash leaves the old content or the new, never half."""

import errno
import hashlib
import os
import re
import secrets
import shlex
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path

from dalle_2.errors import UsageError

# What a user makes goes beside them, not into the package.
GENERATIONS = Path("generations")
TRAINED_MODELS = Path("trained_models")

# A file that is being written, by which process: `atomic_path`; and a folder, see `pipelines.folder.save`.
_WRITING = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}(\.\w+)?|\.saving-(\d+)-\w+")
_BEGAN = time.time()
_WHILE, _DAY = 600, 86_400  # seconds
NO_HOME = "this user has none (no HOME, and no entry in the system's list of users)"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK = (*_FULL, errno.EFBIG, errno.EIO)


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path with "~" as somebody's home folder; a name that only looks like it, "~draft.png", stays a name.

    Raises UsageError where nobody's home is known, as for a user whom only a container's command line names.
    """
    found = Path(os.path.expanduser(path))
    if _of_nobody(found):
        raise UsageError(f"{path} lies in a home folder, and {NO_HOME}: set HOME, or name a folder without ~")
    return found


def _of_nobody(path: Path) -> bool:
    """Whether a path still begins with the home of a user who has none."""
    return path.parts[:1] == ("~",)


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path names another place than this machine's disks: s3://bucket, of which a `Path` keeps one slash."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)) is not None


def shortened(name: str, most: int = 100) -> str:
    """The beginning of a file's name that takes at most so many bytes, which systems count; a letter may have four."""
    return os.fsencode(name)[:most].decode("utf-8", "ignore")


def quoted(path: str | os.PathLike[str], system: str = os.name) -> str:
    """A path as a command that somebody copies into a shell needs it: in quotes where it holds a space or the like.

    system: "nt" quotes as both shells of Windows read it, anything else as those of Unix do.
    """
    text = os.fspath(path)
    if system != "nt":
        return shlex.quote(text)
    return text if re.fullmatch(r"[\w.:\\/~-]+", text) else f'"{text}"'


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new path beside `target`, of the same suffix; on success it replaces `target`, else it goes.

    What a killed process left half-written in the folder goes first.

    Whoever may read it is up to the umask, whatever the library that writes has set (safetensors: the owner alone).
    Missing parent folders are made. Raises OSError with the name of `target` for a disk that is full or fails and for a
    file beyond the limit of its size, whatever the library that was writing made of it.
    """
    target = Path(os.path.realpath(target))
    with _aside(target) as temporary:
        mode = _mode_of_new(temporary)
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)


def write_new(data: bytes, names: Iterable[Path]) -> Path:
    """Writes all of `data` under the first of `names` that is free, and returns it; nothing is written over.

    The names lie in one folder. A file gets its name when it is whole, so that no signal and no crash leaves half of
    one, or an empty one. Raises OSError as `atomic_path` does.
    """
    names = iter(names)
    first = next(names)
    with _aside(first) as temporary:
        temporary.write_bytes(data)
        _sync(temporary)
        taken = _first_free(temporary, chain([first], names))
        _sync(taken.parent)
    return taken


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A path for what is to become `target`, which is gone at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_once(target.parent)
    temporary = target.with_name(f".{shortened(target.stem)}.{os.getpid()}-{secrets.token_hex(4)}{target.suffix}")
    try:
        yield temporary
    except Exception as error:
        said = disk_error(error)
        if said is not None and said.filename in (None, str(temporary)):
            raise OSError(said.errno, os.strerror(said.errno or 0), str(target)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _first_free(temporary: Path, names: Iterable[Path]) -> Path:
    for path in names:
        with suppress(FileExistsError):
            _name(temporary, path)
            return path
    raise FileExistsError(errno.EEXIST, "every name is taken", str(temporary))


def _name(temporary: Path, path: Path) -> None:
    """Gives a file a name that nothing has. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # FAT and some network folders know no links, and some systems allow none
        _rename(temporary, path)


def _rename(temporary: Path, path: Path) -> None:
    """The same without links: Windows refuses to rename to a name that is taken, elsewhere processes take turns."""
    if os.name == "nt":
        os.rename(temporary, path)
        return
    with _turn(path.parent):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.rename(temporary, path)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same out; one that dies lets them in. Where a system has no locks for
    folders, nothing does."""
    import fcntl  # which Windows hasn't

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@cache
def _clear_once(folder: Path) -> None:
    """Once a process: a folder may hold many files. What was written lately stays, as another machine or container may
    be writing it, whose processes have numbers of their own."""
    for path in folder.iterdir():
        _clear(path, _WHILE)


def clear_leftovers(folder: Path, *, alone: bool = False, below: bool = True) -> None:
    """Removes what killed processes left half-written in a folder, in which no other one is at work.

    alone: nobody else can be writing there, so that no numbers of processes are asked, which systems give anew.
    below: in the folders within it, too.
    """
    for path in [*(folder.rglob(".*") if below else folder.glob(".*"))]:
        _clear(path, 0, alone=alone)


def _clear(path: Path, age: float, *, alone: bool = False) -> None:
    """age: seconds in which nothing was written."""
    named = _WRITING.fullmatch(path.name)
    with suppress(OSError):  # somebody else's, or gone by now
        if named is not None and (alone or not _is_written(path, int(named[1] or named[3]), age)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_written(path: Path, process: int, age: float) -> bool:
    """Whether the process is still there; a container may give every process the same number, and another process may
    have got that of a dead one."""
    written = path.stat().st_mtime
    try:
        os.kill(process, 0) if os.name != "nt" else None  # there it would end the process
    except ProcessLookupError:
        return written > time.time() - age
    except OSError:
        pass
    return written >= _began(process) and written > time.time() - _DAY


def _began(process: int) -> float:
    """When a process that is there began, in seconds of the clock; at the beginning of time where nobody says it."""
    if process == os.getpid():
        return _BEGAN
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
        since_boot = ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot - 1  # clocks are coarse
    except (OSError, ValueError, IndexError, AttributeError):  # only Linux
        return 0.0


def _mode_of_new(path: Path) -> int:
    """The mode that a new file gets where `path` is to lie."""
    try:
        path.touch()
        return path.stat().st_mode & 0o777
    finally:
        path.unlink(missing_ok=True)


def atomic_write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Writes all of `data`, or nothing."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(target: str | os.PathLike[str], text: str) -> None:
    """Writes all of `text` in UTF-8 with plain newlines, or nothing."""
    atomic_write_bytes(target, text.encode("utf-8"))


class NotAPlainFile(OSError):
    """A pipe or a device."""


def require_plain_file(path: str | os.PathLike[str]) -> None:
    """Raises NotAPlainFile for a pipe and a device, of which reading may never end, OSError for what isn't there."""
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise NotAPlainFile(errno.EINVAL, "it is a pipe or a device, no plain file", os.fspath(path))


def is_disk_full(error: BaseException) -> bool:
    """True for a full disk or quota, including libraries that wrap the system's error in one of their own."""
    said = disk_error(error)
    return said is not None and said.errno in _FULL


def disk_error(error: BaseException | None) -> OSError | None:
    """What the system said where a disk was full or failed, or a file grew beyond the limit of its size; else None.

    A library may have raised an error of its own while it met that one: PyTorch says that a position was unexpected.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        if "no space left on device" in str(error).lower():  # as others' code has it
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None


def holds_something(path: Path) -> bool:
    """Whether something would be lost or mixed up if a new folder were written there: a file, or a folder not empty."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def shipped_pipelines() -> Path:
    """The folder of the trained pipelines that come with the package."""
    return Path(__file__).parent / "training" / "trained_models"


def hub_cache() -> Path:
    """Where the Hugging Face hub keeps its downloads, by the hub's own rules, without importing it.

    Where nobody's home is known it begins with "~", and nothing should be written there: see `homeless`.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HOME") or home) / "hub"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(named or hub))


def homeless() -> bool:
    """Whether the hub's cache would lie in the home of a user who has none."""
    return _of_nobody(hub_cache())


def kept_weights(folder: Path | None = None) -> Path | None:
    """Where copies of changed weights are kept: all of them, or those of one folder's weights.

    What the hub's cache has of one repository has one place, so that newer copies replace older ones. None where
    nobody's home is known.
    """
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "dalle_2" / "weights"
    if _of_nobody(home):
        return None
    if folder is None:
        return home
    place = Path(os.path.realpath(folder))
    place = place.parents[1] if place.parent.name == "snapshots" else place
    return home / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def accepted_licences() -> Path | None:
    """The file that says which licences of published weights this user has accepted; None where no home is known."""
    home = Path(os.path.expanduser(os.environ.get("XDG_CONFIG_HOME") or "~/.config"))
    return None if _of_nobody(home) else home / "dalle_2" / "accepted-licences.json"


def _sync(path: Path) -> None:
    """Waits until the system has written a file, or a folder's list of names, to the disk."""
    # Folders can't be opened on Windows, and some network file systems refuse to sync.
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)
