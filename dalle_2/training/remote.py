"""Runs whose durable state lies elsewhere: a local folder mirrored to object storage by fsspec."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import fsspec

from dalle_2.errors import Dalle2Error, MissingExtra, UsageError
from dalle_2.training.state import STATE

MARKER = "COMMITTED"
SAGEMAKER_CHECKPOINTS = Path("/opt/ml/checkpoints")


@dataclass(frozen=True)
class Mirror:
    """`folder` is where the run works; `url`, if any, is where its state is kept.

    On AWS (`is_aws`) a machine may be taken away at any moment: state goes to the bucket named by `save_dir`, or to
    the folder that SageMaker copies to one, and the way there is tried before the first step. Otherwise nothing
    specific to AWS runs.
    """

    folder: Path
    url: str | None = None

    @classmethod
    def of(cls, save_dir: str | Path, *, is_aws: bool) -> Self:
        """Raises UsageError where `is_aws` is set and `save_dir` is on no durable place, Dalle2Error where it can't be written."""
        text = os.fspath(save_dir)
        if "://" not in text:
            if is_aws and not SAGEMAKER_CHECKPOINTS.is_dir():
                raise UsageError(f"is_aws keeps state in a bucket: give save_dir as s3://bucket/folder, got {text!r}")
            return cls(SAGEMAKER_CHECKPOINTS / text if is_aws else Path(text))
        mirror = cls(Path(tempfile.mkdtemp(prefix="dalle2-")), text.rstrip("/"))
        mirror._try_out()
        return mirror

    def upload(self, folder: Path) -> None:
        """Copies the state, its digest last: whoever finds the marker finds a whole state."""
        if self.url is None:
            return
        files = self._files()
        for name in (STATE, Path(STATE).with_suffix(".json").name):
            files.put_file(str(folder / name), f"{self._root()}/{name}")
        files.pipe_file(f"{self._root()}/{MARKER}", b"1")

    def download(self, folder: Path) -> None:
        """Fetches a committed state, if there is one."""
        if self.url is None or not self._files().exists(f"{self._root()}/{MARKER}"):
            return
        for name in (STATE, Path(STATE).with_suffix(".json").name):
            self._files().get_file(f"{self._root()}/{name}", str(folder / name))

    def _try_out(self) -> None:
        """Writes and removes a probe, so that a missing permission shows before the first step, not after an hour."""
        probe = f"{self._root()}/.probe"
        try:
            self._files().makedirs(self._root(), exist_ok=True)
            self._files().pipe_file(probe, b"1")
            self._files().rm_file(probe)
        except (OSError, ValueError) as error:
            raise Dalle2Error(f"can't write to {self.url}: {error}; check the address and your credentials") from None

    def _files(self) -> Any:
        try:
            return fsspec.core.url_to_fs(self.url)[0]
        except ImportError:
            raise MissingExtra("s3", "s3fs", f"keeping state at {self.url}") from None

    def _root(self) -> str:
        return str(fsspec.core.url_to_fs(self.url)[1])
