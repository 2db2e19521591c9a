"""A folder of pictures with captions, on the disk or behind an fsspec address.

Captions are read from one table at the root (`captions.csv`, `captions.jsonl`, `metadata.csv` or
`metadata.jsonl`, with a column `file`, `file_name`, `image` or `path` and a column `caption` or `text`) or,
without one, from `NAME.txt` (a caption a line) or `NAME.json` ({"caption": ...}, one or a list) beside each
picture.
"""

import hashlib
import json
import operator
import os
import zlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from dalle_2.data.abs_dataset import AbsDataset, Example
from dalle_2.data.caption_files import TABLES, read_captions
from dalle_2.data.folders import Unreachable, open_folder
from dalle_2.errors import DataError, UsageError
from dalle_2.images import from_pil, open_image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

NO_CAPTION = "no caption"
EMPTY_FILE = "empty file"
NOT_A_PICTURE = "not a picture"
TOO_LARGE = "too large"
OUTSIDE = "leads out of the folder"
DAMAGED = "damaged or truncated"


class Skipped(NamedTuple):
    """A picture that is left out, and why."""

    name: str
    reason: str
    detail: str = ""


class SkipReport(NamedTuple):
    """What a folder left out so far. As text: a line a reason, with the names."""

    found: int
    skipped: tuple[Skipped, ...]

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Sorted names by reason."""
        reasons = sorted({item.reason for item in self.skipped})
        return {
            reason: tuple(sorted(s.name for s in self.skipped if s.reason == reason)) for reason in reasons
        }

    @property
    def counts(self) -> dict[str, int]:
        """Number of pictures by reason."""
        return {reason: len(names) for reason, names in self.names.items()}

    def __str__(self) -> str:
        left = len(self.skipped)
        if not left:
            return f"all {self.found} pictures used"
        lines = (f"  {reason} ({len(names)}): {_listed(names)}" for reason, names in self.names.items())
        return "\n".join([f"{self.found - left} of {self.found} pictures used, {left} skipped", *lines])


class _EmptyFile(DataError):
    pass


@runtime_checkable
class Skipping(Protocol):
    """A data set that may leave pictures out, and says which."""

    def report(self) -> SkipReport: ...


class ImageFolder(AbsDataset):
    """Captioned pictures of a folder and the folders below it, sorted by name, fitted to `size` x `size`.

    resize: "crop" the middle square, "squash", or "pad" with white. on_error: "skip" replaces a picture that
    can't be read by the next one that can (its own caption with it), so that length and indices stay as they
    are, and `report` names it; "raise" raises DataError. A picture without a caption, or behind a link that
    leads out of the folder, is left out and reported. Of several captions, one is chosen by `seed` and the
    picture's name, the same one every time. Pictures are opened when they are first asked for.

    Raises DataError if the folder is missing or empty, holds no picture that can be read, none with a
    caption, or captions that make no sense; UsageError for a wrong argument.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int = 64,
        *,
        resize: Literal["crop", "squash", "pad"] = "crop",
        on_error: Literal["skip", "raise"] = "skip",
        seed: int = 0,
    ) -> None:
        if size < 1 or resize not in ("crop", "squash", "pad") or on_error not in ("skip", "raise"):
            raise UsageError(
                f"size must be at least 1, resize crop, squash or pad, on_error skip or raise; "
                f"got {size}, {resize!r}, {on_error!r}"
            )
        self._folder = open_folder(root)
        self.name = PurePosixPath(self._folder.label.replace("\\", "/")).name or "folder"
        self.size, self.resize, self.on_error, self.seed = size, resize, on_error, seed
        self._skipped: dict[str, Skipped] = {}
        self._captions = self._captioned(self._folder.names())
        self._names = tuple(self._captions)
        self._example(0)  # a folder without any readable picture is refused here, not in the middle of a run

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a folder of {len(self)} pictures")
        return self._example(index)

    def read(self, index: int) -> Example | None:
        """Example `index` itself, or None if its picture can't be read."""
        name = self._names[index]
        if name in self._skipped:
            return None
        try:
            return Example(self._pixels(name), self.caption(index))
        except Unreachable:
            raise
        except (DataError, OSError) as error:
            if self.on_error == "raise":
                raise DataError(
                    f"{self._folder.label}/{name} can't be used ({_reason(error)}): "
                    f"repair it, remove it, or let on_error be 'skip'"
                ) from error
            self._skip(name, _reason(error), str(error))
            return None

    def file(self, index: int) -> str:
        """The name of picture `index`, relative to the folder."""
        return self._names[index]

    def caption(self, index: int) -> str:
        """The caption that goes with picture `index`."""
        captions = self.captions(index)
        chosen = zlib.crc32(f"{self.seed}/{self._names[index]}".encode("utf-8", "surrogateescape"))
        return captions[chosen % len(captions)]

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of picture `index`."""
        return self._captions[self._names[index]]

    def verify(self) -> SkipReport:
        """Opens every picture now. Raises DataError at the first broken one if on_error is "raise"."""
        for index in range(len(self)):
            self.read(index)
        return self.report()

    def report(self) -> SkipReport:
        """What was left out so far: complete after one epoch, as pictures are opened when asked for."""
        skipped = tuple(self._skipped.copy().values())
        without_caption = sum(item.name not in self._captions for item in skipped)
        return SkipReport(len(self) + without_caption, skipped)

    def fingerprint(self) -> str:
        """Follows from the pictures' names, sizes in bytes, captions and cut; not from `size`."""
        digest = hashlib.sha256(f"{self.resize}/{self.seed}\n".encode())
        for name, captions in self._captions.items():
            row = json.dumps([name, self._bytes(name), captions])
            digest.update(row.encode() + b"\n")
        return digest.hexdigest()

    def _captioned(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        inside = self._inside(names)
        pictures = list(filter(_is_picture, inside))
        captions = read_captions(self._folder, pictures, frozenset(inside))
        if not captions:
            links = f" (not followed out of it: {_listed(sorted(self._skipped))})" if self._skipped else ""
            expected = ", ".join(EXTENSIONS)
            raise DataError(
                f"{self._folder.label} holds no pictures{links}: expected files named *{expected}"
            )
        for name in (name for name in captions if not captions[name]):
            self._skip(name, NO_CAPTION)
        if all(name in self._skipped for name in captions):
            raise DataError(
                f"none of the {len(captions)} pictures in {self._folder.label} has a caption: "
                f"put NAME.txt beside NAME.png, or a table {TABLES[0]} into the folder"
            )
        return {name: captions[name] for name in sorted(captions) if captions[name]}

    def _inside(self, names: Sequence[str]) -> list[str]:
        outside = {name for name in names if self._folder.is_link(name) and self._folder.escapes(name)}
        for name in sorted(name for name in outside if _is_picture(name) or name.endswith("/")):
            self._skip(name, OUTSIDE)
        return [name for name in names if name not in outside]

    def _example(self, index: int) -> Example:
        """Example `index`, or the next that can be read, all the way round."""
        examples = (self.read(k % len(self)) for k in range(index, index + len(self)))
        example = next((example for example in examples if example is not None), None)
        if example is None:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.report().counts.items())
            raise DataError(
                f"none of the {len(self)} captioned pictures in {self._folder.label} can be read: {counts}"
            )
        return example

    def _bytes(self, name: str) -> int:
        try:
            return self._folder.size(name)
        except OSError:
            return -1  # gone since the folder was listed

    def _pixels(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        if self._folder.size(name) == 0:
            raise _EmptyFile("the file has 0 bytes")
        with self._folder.local(name) as path:
            fitted = from_pil(open_image(path), self.size, self.resize)
        pixels: np.ndarray = (
            ((fitted + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        )
        return pixels

    def _skip(self, name: str, reason: str, detail: str = "") -> None:
        self._skipped[name] = Skipped(name, reason, detail)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _reason(error: Exception) -> str:
    """The kind of failure, from what `open_image` met."""
    if isinstance(error, _EmptyFile):
        return EMPTY_FILE
    met = error.__context__
    if isinstance(met, UnidentifiedImageError):
        return NOT_A_PICTURE
    return TOO_LARGE if isinstance(met, DataError | Image.DecompressionBombError) else DAMAGED


def _listed(names: Sequence[str], most: int = 20) -> str:
    # A name may hold line breaks, terminal commands or bytes that are no text.
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in names[:most]]
    return ", ".join([*shown, f"... and {len(names) - most} more"] if len(names) > most else shown)
