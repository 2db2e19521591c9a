"""A picture file that says how it was made. Needs Pillow only, so that reading it back is quick.

PNG: tEXt "parameters" (one text, as other tools read it), iTXt "dalle2" (JSON), XMP.
JPEG: EXIF UserComment (JSON), XMP.
The XMP packet carries IPTC's digital source type for pictures made by a trained model.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from xml.sax.saxutils import quoteattr

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from dalle_2.errors import DataError, UsageError
from dalle_2.json_file import parsed
from dalle_2.paths import atomic_write_bytes, require_plain_file

SUFFIXES = (".png", ".jpg", ".jpeg")

P = TypeVar("P")

_TEXT_BYTES = 2**26  # of all texts of one PNG, unpacked
_LONG_TEXTS = Lock()

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_ASCII, _UNICODE = b"ASCII\0\0\0", b"UNICODE\0"
_JPEG_COMMENT_LIMIT = 65_000  # an EXIF block ends at 65,533 bytes, heading included

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmp:CreatorTool={tool}
 Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def save_image(
    image: Image.Image, path: str | os.PathLike[str], metadata: Mapping[str, Any], quality: int = 95
) -> None:
    """Writes a PNG or a JPEG (by the suffix), atomically, with `metadata` inside.

    `quality` (1 to 100) is for JPEG. Raises UsageError for another suffix, for metadata that is not plain
    JSON, and for more of it than a JPEG holds.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"can't write {target.name}: the suffix must be one of {', '.join(SUFFIXES)}")
    atomic_write_bytes(target, encoded(image, target.suffix, metadata, quality))


def encoded(image: Image.Image, suffix: str, metadata: Mapping[str, Any], quality: int = 95) -> bytes:
    """The bytes of such a file; suffix: "png", "jpg" or "jpeg".

    In memory, as the libraries that encode pictures don't notice a disk that takes a part of what they write. Raises
    UsageError as `save_image` does.
    """
    text = _to_json(metadata)
    if suffix.lower().lstrip(".") == "png":
        return _png(image, metadata, text)
    return _jpeg(image, text, quality)


def png(image: Image.Image, texts: PngImagePlugin.PngInfo | None = None) -> bytes:
    """The bytes of a PNG that says nothing of how it was made but `texts`."""
    memory = BytesIO()
    image.save(memory, format="PNG", pnginfo=texts)
    return memory.getvalue()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `save_image` wrote into the picture, or None if it holds nothing of ours. Decodes no pixels.

    Raises DataError if the file is no picture.
    """
    try:
        require_plain_file(path)
        text = reading_long_texts(lambda: _own_text(path))
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except Exception as error:
        raise DataError(f"can't read {path} as a PNG or JPEG picture: {reason(error)}") from None
    return _from_json(text)


def reading_long_texts(read: Callable[[], P]) -> P:
    """What `read` gives; where Pillow finds a PNG's texts or its colour profile too long, with another limit for them.

    The limit is Pillow's for the whole process, so that only one file at a time is read with the higher one.
    """
    try:
        return read()
    except ValueError as error:
        if "MAX_TEXT" not in str(error):  # which Pillow's message names
            raise
        with _LONG_TEXTS, _text_limit(_TEXT_BYTES):
            return read()


@contextmanager
def _text_limit(size: int) -> Iterator[None]:
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = size
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def reason(error: Exception) -> str:
    """Why Pillow could not read a picture, without the path that its own messages repeat."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is no known picture format"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _to_json(metadata: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"metadata must be plain JSON values: {error}") from None


def _from_json(text: Any) -> dict[str, Any] | None:
    try:
        values = parsed(text, finite=True) if text else None
    except (TypeError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _png(image: Image.Image, metadata: Mapping[str, Any], text: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", _parameters(metadata))
    chunks.add_itxt("dalle2", text)
    chunks.add_itxt("XML:com.adobe.xmp", _xmp())
    return png(image, chunks)


def _jpeg(image: Image.Image, text: str, quality: int) -> bytes:
    comment = _ASCII + text.encode() if text.isascii() else _UNICODE + text.encode("utf-16-le")
    if len(comment) > _JPEG_COMMENT_LIMIT:
        raise UsageError(f"{len(comment)} bytes of metadata are more than a JPEG holds: use .png")
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    memory = BytesIO()
    # Full colour resolution: half of it would fray the edges of flat shapes.
    options = {"quality": quality, "subsampling": 0, "exif": exif.tobytes(), "xmp": _xmp().encode()}
    image.convert("RGB").save(memory, format="JPEG", **options)
    return memory.getvalue()


def _parameters(metadata: Mapping[str, Any]) -> str:
    """The prompt on its own line, then "key: value" pairs, as the field's picture viewers show it."""
    pairs = ", ".join(f"{key}: {value}" for key, value in metadata.items() if key != "prompt")
    return f"{metadata.get('prompt', '')}\n{pairs}".strip()


def _xmp() -> str:
    return _XMP.format(tool=quoteattr("dalle_2"))


def _own_text(path: str | os.PathLike[str]) -> str | None:
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        return image.info.get("dalle2") or _comment(image)


def _comment(image: Image.Image) -> str | None:
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if not isinstance(comment, bytes):
        return None
    encoding = "utf-16-le" if comment.startswith(_UNICODE) else "ascii"
    return comment[len(_ASCII) :].decode(encoding, errors="replace")
