"""A folder of pictures with captions, on the disk or behind an fsspec address.

Captions are read from tables (`captions` or `metadata`, `.csv`, `.tsv` or `.jsonl`, with a column `file`, `file_name`,
`image` or `path` and a column `caption` or `text`), which may lie in the folder itself or in those of its splits, and
from `NAME.txt` or `NAME.caption` (a caption a line) or `NAME.json` ({"caption": ...}, one or a list) beside each
picture that no table has a caption for.
"""

import copy
import hashlib
import json
import operator
import os
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from dalle_2.data.abs_dataset import AbsDataset, Example
from dalle_2.data.caption_files import TABLES, Captions, is_about_captions, may_be_meant, read_captions
from dalle_2.data.file_names import composed
from dalle_2.data.folders import Listed, Unreachable, open_folder
from dalle_2.data.held_out import left_to_train_on
from dalle_2.data.skipped import (
    BAD_CAPTION,
    DAMAGED,
    EMPTY_FILE,
    FOLLOW,
    MISSING,
    NO_CAPTION,
    NOT_A_PICTURE,
    OUTSIDE,
    TOO_LARGE,
    Marks,
    Skipped,
    SkipReport,
    listed,
)  # fmt: skip
from dalle_2.errors import Dalle2Error, DataError, UsageError
from dalle_2.images import from_pil, open_image, size_of
from dalle_2.paths import NotAPlainFile

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class _EmptyFile(DataError):
    pass


class ImageFolder(AbsDataset):
    """Captioned pictures of a folder and the folders below it, sorted by name, fitted to `size` x `size`.

    resize: "crop" the middle square, "squash", or "pad" with white. on_error: "skip" replaces a picture that
    can't be read by the next one that can (its own caption with it), so that length and indices stay as they
    are, and `report` names it; "raise" raises DataError. A picture without a caption that can be read, one that a
    table names and that isn't there, and one behind a link that leads out of the folder are left out and reported.
    follow_links: read what links, and names in tables, lead to outside as well; what a snapshot in the cache of the
    Hugging Face hub links to is inside. Of several captions, one is chosen by `seed` and the picture's name, the same
    one every time. Pictures are opened when they are first asked for, in any process: `report` knows of all of them.
    held_out: a share of the pictures to leave out, the same ones every time, without a report.

    Raises DataError if the folder is missing or empty, holds no picture that can be read, none with a
    caption, or tables that make no sense; UsageError for a wrong argument.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int = 64,
        *,
        resize: Literal["crop", "squash", "pad"] = "crop",
        on_error: Literal["skip", "raise"] = "skip",
        held_out: float = 0.0,
        seed: int = 0,
        follow_links: bool = False,
    ) -> None:
        if size < 1 or resize not in ("crop", "squash", "pad") or on_error not in ("skip", "raise"):
            raise UsageError(
                f"size must be at least 1, resize crop, squash or pad, on_error skip or raise; "
                f"got {size}, {resize!r}, {on_error!r}"
            )
        self._anew = partial(
            type(self), root, size,
            resize=resize, on_error=on_error, held_out=held_out, seed=seed, follow_links=follow_links,
        )  # fmt: skip
        self._folder = open_folder(root, follow_links=follow_links)
        self.name = PurePosixPath(self._folder.label.replace("\\", "/")).name or "folder"
        self.size, self.resize, self.on_error, self.seed = size, resize, on_error, seed
        self._skipped: dict[str, Skipped] = {}
        captioned = self._captioned(self._folder.listed())
        self._names = tuple(left_to_train_on(list(captioned), held_out))
        self._captions = {name: captioned[name] for name in self._names}
        self._marks = Marks(len(self._names))
        self._fingerprint: dict[str, str] = {}  # which `at_size` hands on before it is known
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
        if self._marks[index] is not None:
            return None
        name = self._names[index]
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
            self._marks[index] = _reason(error)
            return None

    def file(self, index: int) -> str:
        """The name of picture `index`, relative to the folder."""
        return self._names[index]

    def digest(self, index: int) -> str:
        """The first 16 digits of the sha256 of picture `index`'s file; empty where it is gone."""
        name = self._names[index]
        try:  # by now something may lie there whose content has no end
            return hashlib.sha256(self._folder.read(name)).hexdigest()[:16] if self._folder.is_file(name) else ""
        except OSError:
            return ""

    def caption(self, index: int) -> str:
        """The caption that goes with picture `index`."""
        captions = self.captions(index)
        chosen = zlib.crc32(f"{self.seed}/{composed(self._names[index])}".encode("utf-8", "surrogateescape"))
        return captions[chosen % len(captions)]

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of picture `index`."""
        return self._captions[self._names[index]]

    def shorter_side(self, index: int) -> int | None:
        """Of picture `index` as it lies there, in pixels, by its header alone; None if that can't be read."""
        try:
            with self._folder.local(self._names[index]) as path:
                return min(size_of(path))
        except Exception:  # whatever is broken about it, reading it will say
            return None

    def verify(self) -> SkipReport:
        """Opens every picture now. Raises DataError at the first broken one if on_error is "raise"."""
        for index in range(len(self)):
            self.read(index)
        return self.report()

    def report(self) -> SkipReport:
        """What was left out so far: complete after one epoch, as pictures are opened when asked for.

        What a DataLoader's processes met has no `detail` here.
        """
        elsewhere = {self._names[index]: reason for index, reason in self._marks.all().items()}
        items = {name: Skipped(name, reason) for name, reason in elsewhere.items()} | self._skipped.copy()
        without_caption = sum(item.picture and item.name not in self._captions for item in items.values())
        return SkipReport(len(self) + without_caption, tuple(items.values()))

    def fingerprint(self) -> str:
        """Follows from the pictures' names in the folder, sizes in bytes, captions and cut; not from `size`, and not
        from where the folder lies. Computed once."""
        key = f"{self.resize}/{self.seed}"
        if key not in self._fingerprint:
            digest, dated = hashlib.sha256(f"{key}\n".encode()), hashlib.sha256()
            for name, captions in self._captions.items():
                size, date = self._stamp(name)
                digest.update(json.dumps([composed(name), size, captions]).encode() + b"\n")
                dated.update(f"{date}\n".encode())
            self._fingerprint[key], self._fingerprint[f"{key}/dated"] = digest.hexdigest(), dated.hexdigest()
        return self._fingerprint[key]

    def changed(self) -> str | None:
        """What has become of the pictures and captions since `fingerprint` was asked for, None if nothing has.

        On the disk also by the dates of the files; their content isn't read.
        """
        try:
            now = self._anew()
        except Dalle2Error as error:
            return f"the pictures in {self._folder.label} can't be read any more ({error})"
        if now.fingerprint() != self.fingerprint():
            counts = f", {len(self)} then and {len(now)} now" if len(now) != len(self) else ""
            return f"the pictures in {self._folder.label} or their captions changed{counts}"
        dated = f"{self.resize}/{self.seed}/dated"
        if now._fingerprint[dated] != self._fingerprint[dated]:
            return f"pictures in {self._folder.label} were rewritten"
        return None

    def at_size(self, size: int) -> "ImageFolder":
        """The same pictures fitted to another size, without listing them anew; both report the same ones left out."""
        other = copy.copy(self)
        other.size = size
        return other

    def _captioned(self, found: Listed) -> Captions:
        """The captions of those pictures that have some, in the order of their names."""
        for name in found.outside:
            if _is_picture(name) or is_about_captions(name) or name.endswith("/"):
                self._skip(name, OUTSIDE, picture=_is_picture(name))
        pictures = list(filter(_is_picture, found.names))
        captions, skipped = read_captions(self._folder, pictures, found.names)
        for item in skipped:
            self._leave_out(item)
        if not captions:
            raise DataError(self._no_pictures())
        for name in (name for name in captions if not captions[name] and name not in self._skipped):
            self._skip(name, NO_CAPTION)
        if not any(captions.values()):
            raise DataError(self._no_captions(found.names, len(captions)))
        return {name: captions[name] for name in sorted(captions, key=composed) if captions[name]}

    def _leave_out(self, item: Skipped) -> None:
        if self.on_error == "raise":
            raise DataError(
                f"{self._folder.label}/{item.name} can't be used ({item.reason}: {item.detail}): "
                f"repair it, or let on_error be 'skip'"
            )
        self._skipped[item.name] = item

    def _no_pictures(self) -> str:
        outside = self._outside()
        links, hint = (f" (not followed out of it: {listed(outside)})", f"; {FOLLOW}") if outside else ("", "")
        return f"{self._folder.label} holds no pictures{links}: expected files named *{', '.join(EXTENSIONS)}{hint}"

    def _no_captions(self, names: Iterable[str], count: int) -> str:
        """What to say where no picture has a caption: why the first can't be read, or how captions are given."""
        unread = next((item.detail for item in self._skipped.values() if item.reason == BAD_CAPTION), None)
        if unread is not None:
            return unread
        others = list(filter(may_be_meant, names))
        outside = [name for name in self._outside() if not _is_picture(name)]
        links = f"; not followed out of the folder: {listed(outside)}; {FOLLOW}" if outside else ""
        return (
            f"none of the {count} pictures in {self._folder.label} has a caption: put NAME.txt beside NAME.png, or a "
            f"table {', '.join(TABLES[:-1])} or {TABLES[-1]} into the folder"
            + (f" (no such table: {listed(others, 3)})" if others else links)
        )

    def _outside(self) -> list[str]:
        return sorted(item.name for item in self._skipped.values() if item.reason == OUTSIDE)

    def _example(self, index: int) -> Example:
        """Example `index`, or the next that can be read, all the way round."""
        examples = (self.read(k % len(self)) for k in range(index, index + len(self)))
        example = next((example for example in examples if example is not None), None)
        if example is None:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.report().counts.items())
            raise DataError(f"none of the {len(self)} captioned pictures in {self._folder.label} can be read: {counts}")
        return example

    def _stamp(self, name: str) -> tuple[int, int]:
        try:
            return self._folder.stamp(name)
        except OSError:
            return -1, 0  # gone since the folder was listed

    def _pixels(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        if self._folder.size(name) == 0:
            raise _EmptyFile("the file has 0 bytes")
        with self._folder.local(name) as path:
            fitted = from_pil(open_image(path), self.size, self.resize)
        pixels: np.ndarray = ((fitted + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        return pixels

    def _skip(self, name: str, reason: str, detail: str = "", *, picture: bool = True) -> None:
        self._skipped[name] = Skipped(name, reason, detail, picture)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _reason(error: Exception) -> str:
    """The kind of failure, from what `open_image` met."""
    if isinstance(error, _EmptyFile):
        return EMPTY_FILE
    met = error.__context__
    if FileNotFoundError in (type(error), type(met)):
        return MISSING
    if isinstance(met, UnidentifiedImageError) or isinstance(error, NotAPlainFile):
        return NOT_A_PICTURE
    return TOO_LARGE if isinstance(met, DataError | Image.DecompressionBombError) else DAMAGED
