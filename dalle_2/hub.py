"""Weights on the Hugging Face hub -> a folder in its cache, in the hub's own layout; what is there needs no network.

The hub's client starts a file anew that was cut off, and of what came over HTTP it looks at the size alone. So files
are fetched here: a cut one is taken up where it stopped, and each is held against the sum that the hub states.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from dalle_2.cached import PICKLED, SAFE, cached, home, read_forms
from dalle_2.errors import CheckpointError, HubError
from dalle_2.json_file import read_object
from dalle_2.paths import NO_HOME, accepted_licences, atomic_write_text, homeless, hub_cache, is_disk_full
from dalle_2.published import Published, published_as
from dalle_2.terminal import on_one_line, returning

SETTINGS = ("*.json", "*.txt", "README.md")
SUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # SHA-1 of git, SHA-256 of large files
SECONDS = 20  # to wait for the list of files
STALE = 86_400  # seconds after which nobody goes on with a download of other files than these

_accepted_now = set[str]()  # by this process


class File(NamedTuple):
    """A file on the hub. sum: SHA-256 of a large one, git's SHA-1 of a small one."""

    name: str
    size: int
    sum: str


# Licences


def to_accept(repo: str) -> Published | None:
    """The published weights whose licence must be accepted before they are fetched; None where nothing hinders."""
    row = published_as(repo)
    if row is None or not row.licence.terms or row.licence.name in _accepted() or cached(repo) is not None:
        return None
    return row


def accept(row: Published) -> None:
    """Remembers that this user has accepted the licence of some weights; for this process only where there is no place
    for it."""
    if not _noted(sorted({*_accepted(), row.licence.name})):
        _accepted_now.add(row.licence.name)


def _noted(names: list[str]) -> bool:
    """Whether the names could be written down: a user may have no home, or one that is read only."""
    place = accepted_licences()
    try:
        if place is not None:
            atomic_write_text(place, json.dumps({"accepted": names}, indent=1) + "\n")
    except OSError:
        return False
    return place is not None


def _accepted() -> set[str]:
    place = accepted_licences()
    try:
        noted = read_object(place, "").get("accepted") if place is not None else None
    except CheckpointError:  # there is none yet, or it is damaged: the licence is shown once more
        noted = None
    return _accepted_now | {name for name in noted or () if isinstance(name, str)}


# What is fetched


def needed(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that are read: settings, tokenizers, and one form of the weights a folder."""
    paths = map(PurePosixPath, names)
    wanted = read_forms(path for path in paths if not path.is_absolute() and ".." not in path.parts)
    safe = {path.parent for path in wanted if fnmatch(path.name, SAFE)}

    def read(path: PurePath) -> bool:
        forms = (*SETTINGS, SAFE) if path.parent in safe else (*SETTINGS, PICKLED)
        return any(fnmatch(path.name, form) for form in forms)

    return sorted(str(path) for path in wanted if read(path))


def fetch(repo: str) -> Path:
    """The folder of a hub id as the hub has it now; what lies in the cache is not fetched again.

    Called again after an interruption it goes on where that happened. The folder only counts as cached when all of it
    is there. Raises HubError for a licence that nobody has accepted, a hub or a repository that can't be reached, a
    file that isn't what the hub says, and a full disk.
    """
    if homeless():
        raise HubError(
            f"{repo} isn't here, and would be kept in a home folder, but {NO_HOME}: set HOME, or HF_HOME to a folder "
            "for downloads"
        )
    if (row := to_accept(repo)) is not None:
        raise HubError(
            f"{repo} is under a licence that must be accepted before a first download, {row.licence.name} "
            f"({row.licence.url}): run dalle2 models download {row.name} --accept-licence"
        )
    try:
        commit, files = _listed(repo)
        folder = home(repo) / "snapshots" / commit
        lacking = [file for file in files if not (folder / file.name).exists()]
        _check_space(repo, lacking)
        for file in lacking:
            _fetch(repo, commit, file)
        atomic_write_text(home(repo) / "refs" / "main", commit)
        _forget_cut_off(repo)
    except HubError:
        raise
    except Exception as error:  # the hub's client and its transport raise errors of a dozen unrelated kinds
        raise HubError(_sentence(repo, error)) from error
    return folder


def _forget_cut_off(repo: str) -> None:
    """What was cut off of files that the hub has no more, and that nobody goes on with."""
    for part in (home(repo) / "blobs").glob("*.incomplete"):
        if time.time() - part.stat().st_mtime > STALE:
            part.unlink(missing_ok=True)


def _listed(repo: str) -> tuple[str, list[File]]:
    """The newest commit, and its files that are read."""
    from huggingface_hub import HfApi

    model = HfApi().model_info(repo, files_metadata=True, timeout=SECONDS)
    stated = {entry.rfilename: _stated(entry) for entry in model.siblings or ()}
    files = [stated[name] for name in needed(stated)]
    if any(SUM.fullmatch(given) is None for given in (model.sha or "", *(file.sum for file in files))):
        raise HubError(f"the hub's list of the files of {repo} can't be read: it states no commit, or no sums")
    return model.sha or "", files


def _stated(entry: Any) -> File:
    size, checksum = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, entry.blob_id)
    return File(entry.rfilename, size or 0, checksum or "")


def _check_space(repo: str, files: Iterable[File]) -> None:
    there = sum(_size(_part(_blob(repo, file))) for file in files)
    wanted = sum(file.size for file in files) - there
    existing = next(place for place in (home(repo), *home(repo).absolute().parents) if place.exists())
    if wanted > (free := shutil.disk_usage(existing).free):
        raise HubError(
            f"{repo} takes {wanted / 1e9:.2f} GB more, and the disk of the hub cache {hub_cache()} has "
            f"{free / 1e9:.2f} GB free: make room, or name a folder on another disk as HF_HUB_CACHE"
        )


def _fetch(repo: str, commit: str, file: File) -> None:
    """A file as a blob, named by its sum, and a link to that where the commit has it."""
    from huggingface_hub.utils import WeakFileLock

    blob, pointer = _blob(repo, file), home(repo) / "snapshots" / commit / file.name
    lock = hub_cache() / ".locks" / home(repo).name / f"{file.sum}.lock"
    for path in (blob, pointer, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _download(repo, commit, file, blob)
        pointer.unlink(missing_ok=True)  # one that leads nowhere
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # Windows, unless its user may make links: there the file itself lies in the snapshot
            os.replace(blob, pointer)


def _download(repo: str, commit: str, file: File, blob: Path) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = _part(blob)
    if _size(part) > file.size:
        part.unlink()
    if _size(part) < file.size or not file.size:
        with part.open("ab") as stream, returning():
            http_get(
                hf_hub_url(repo, file.name, revision=commit), stream, resume_size=_size(part), expected_size=file.size,
                headers=build_hf_headers(), displayed_filename=on_one_line(file.name),
            )  # fmt: skip
    if _sum_of(part, file) != file.sum:
        part.unlink()
        raise HubError(
            f"{file.name} of {repo} came damaged: its checksum is not the one that the hub states, {file.sum}, and it "
            "was thrown away; run the same command again, which keeps all other files"
        )
    os.replace(part, blob)


def _sum_of(path: Path, file: File) -> str:
    """SHA-256, or SHA-1 as git takes it, by the length of what is stated."""
    large = len(file.sum) == 64
    made = hashlib.sha256() if large else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            made.update(block)
    return made.hexdigest()


def _blob(repo: str, file: File) -> Path:
    return home(repo) / "blobs" / file.sum


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sentence(repo: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if is_disk_full(error):
        return (
            f"the disk of the hub cache {hub_cache()} filled up while {repo} was fetched: make room and run the same "
            "command again, which goes on from there"
        )
    if isinstance(error, PermissionError):
        return (
            f"{repo} isn't here, and nothing may be written into the hub cache {hub_cache()}: name another folder as "
            "HF_HUB_CACHE"
        )
    lacks = f"{repo} isn't in the hub cache {hub_cache()}, or not all of it, and"
    if isinstance(error, GatedRepoError):
        return f"{lacks} the hub gives it to those only who asked for it: see its page there, and run hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return f"{lacks} the hub has no such model, or a private one: check the name"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{lacks} HF_HUB_OFFLINE is set: fetch it where there is a network, or give a folder"
    return (
        f"{lacks} it could not be fetched from the hub ({_first_line(error)}): check the network and run the same "
        "command again, which goes on from there, or give a folder"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
