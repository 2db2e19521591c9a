"""Runs whose durable state lies elsewhere: a local folder mirrored to object storage by fsspec."""

import json
import os
import posixpath
import shutil
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import fsspec

from dalle_2.errors import CheckpointError, Dalle2Error, MissingExtra, UsageError
from dalle_2.paths import atomic_write_text, is_address
from dalle_2.training.state import STATE, digest_file

MARKER = "COMMITTED"
SAGEMAKER_CHECKPOINTS = Path("/opt/ml/checkpoints")


class Scratch:
    """A temporary folder that goes when nobody holds this any more, at the latest with the process, unless kept."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dalle2-"))
        self._removal = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def keep(self) -> None:
        """Leaves the folder where it is, for good."""
        self._removal.detach()


@dataclass(frozen=True)
class Mirror:
    """`folder` is where the run works, a `scratch` one if its state is kept elsewhere, at `url`.

    On AWS (`is_aws`) a machine may be taken away at any moment: state goes to the bucket named by `save_dir`, or to
    the folder that SageMaker copies to one. The way to a `save_dir` with "://" is tried before the first step.
    Without `is_aws` nothing specific to AWS runs.
    """

    folder: Path
    url: str | None = None
    scratch: Scratch | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, save_dir: str | Path, *, is_aws: bool) -> Self:
        """The mirror that a trainer's arguments mean.

        Raises UsageError where `is_aws` is set and `save_dir` is on no durable place, Dalle2Error where it can't be
        written, MissingExtra where its kind of address needs a package that is not installed.
        """
        text = os.fspath(save_dir)
        if "://" not in text:
            if is_address(text):
                raise UsageError(f"{text} was an address before it became a Path: give save_dir as a string")
            return cls(_durable(Path(text)) if is_aws else Path(text))
        scratch = Scratch()
        mirror = cls(scratch.folder, text.rstrip("/"), scratch)
        mirror._try_out()
        return mirror

    def upload(self, folder: Path) -> None:
        """Copies the state under a name of its own, then says in the marker that it counts, then drops older ones.

        Whoever reads the marker finds a whole state, also while the next one is on its way.
        """
        if self.url is None:
            return
        content = digest_file(folder / STATE).read_text()
        name = _remote_name(content)
        try:
            files, root = self._place()
            files.put_file(str(folder / STATE), f"{root}/{name}")
            files.pipe_file(f"{root}/{MARKER}", content.encode())
            for path in files.glob(f"{root}/state-*.pth"):
                if posixpath.basename(path) != name:
                    files.rm_file(path)
        except (OSError, ValueError) as error:
            if self.scratch:
                self.scratch.keep()
            raise Dalle2Error(f"can't copy the state to {self.url} ({error}): it lies whole in {folder}") from error

    def download(self, folder: Path) -> None:
        """Fetches the committed state, if there is one. Raises CheckpointError where it is gone or can't be read."""
        if self.url is None:
            return
        try:
            files, root = self._place()
            if not files.exists(f"{root}/{MARKER}"):
                return
            content = files.cat_file(f"{root}/{MARKER}").decode()
            files.get_file(f"{root}/{_remote_name(content)}", str(folder / STATE))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the state at {self.url} can't be fetched ({error}): delete {MARKER} there to start anew"
            ) from error
        atomic_write_text(digest_file(folder / STATE), content)

    def committed(self) -> str:
        """What lies beside the state that counts, see `saved_run`; nothing where none does, or can't be looked at."""
        if self.url is None:
            path = digest_file(self.folder / STATE)
            return path.read_text() if path.is_file() else ""
        with suppress(OSError, ValueError):  # of which the upload will tell
            files, root = self._place()
            return str(files.cat_file(f"{root}/{MARKER}").decode())
        return ""

    def _try_out(self) -> None:
        """Writes and removes a probe, so that a missing permission shows before the first step, not after an hour."""
        try:
            files, root = self._place()
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/.probe", b"1")
            files.rm_file(f"{root}/.probe")
        except Dalle2Error:
            raise
        except Exception as error:  # every kind of storage has errors of its own, missing credentials among them
            raise Dalle2Error(f"can't write to {self.url}: {error}; check the address and your credentials") from error

    def _place(self) -> tuple[Any, str]:
        """The file system of `url`, and the path in it."""
        try:
            files, root = fsspec.core.url_to_fs(self.url)
        except ImportError:
            raise MissingExtra("s3", "s3fs", f"keeping state at {self.url}") from None
        return files, str(root)


def _durable(folder: Path) -> Path:
    """A folder below the one that SageMaker copies to a bucket. Raises UsageError anywhere else."""
    inside = SAGEMAKER_CHECKPOINTS / folder
    if SAGEMAKER_CHECKPOINTS.is_dir() and inside.is_relative_to(SAGEMAKER_CHECKPOINTS):
        return inside
    raise UsageError(f"is_aws keeps state in a bucket: give save_dir as s3://bucket/folder, got {str(folder)!r}")


def _remote_name(marker: str) -> str:
    """The name that a committed state has in the storage; it follows from its content."""
    return f"state-{json.loads(marker)['sha256'][:16]}.pth"
