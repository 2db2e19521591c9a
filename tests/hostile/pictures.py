"""Mutated pictures of every format and mode that is read, small ones, hundreds a second."""

import io
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageCms, features

from dalle_2.images import from_pil, open_image, read_metadata
from dalle_2.metadata import encoded
from hostile.harness import Case
from hostile.mutations import mutated, mutated_png

MEMORY = 600 * 10**6
SOME = {"seed": 1, "prompt": "a red circle above a blue square", "more": "äöü" * 20}

# Per format, the modes that it holds and the ways of writing them.
_TIFF_WAYS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "webp", "zstd")
KINDS: dict[str, tuple[tuple[str, ...], tuple[dict[str, Any], ...]]] = {
    "PNG": (
        ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        ({}, {"text": True}, {"icc_profile": True}, {"exif": True}, {"transparency": 0}),
    ),
    "JPEG": (
        ("L", "RGB", "CMYK"),
        (
            {}, {"progressive": True}, {"subsampling": 2}, {"exif": True}, {"icc_profile": True},
            {"restart_marker_rows": 1},
        ),
    ),
    "WEBP": (("RGB", "RGBA"), ({}, {"lossless": True}, {"save_all": True}, {"exif": True}, {"icc_profile": True})),
    "GIF": (("1", "L", "P"), ({}, {"save_all": True}, {"transparency": 0}, {"interlace": 0})),
    "BMP": (("1", "L", "P", "RGB", "RGBA"), ({},)),
    "TIFF": (
        ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"),
        (
            {}, *({"compression": way} for way in _TIFF_WAYS), {"save_all": True}, {"icc_profile": True},
            {"tiffinfo": {0x112: 6}}, {"big_tiff": True},
        ),
    ),
    "PPM": (("1", "L", "RGB", "I;16", "F"), ({},)),
    "TGA": (("L", "LA", "P", "RGB", "RGBA"), ({}, {"compression": "tga_rle"})),
    "ICO": (("RGBA", "P"), ({"sizes": [(16, 16), (32, 32)]}, {"bitmap_format": "bmp", "sizes": [(16, 16)]})),
    "MPO": (("RGB",), ({"save_all": True},)),
    "AVIF": (("RGB", "RGBA"), ({"speed": 10}, {"speed": 10, "save_all": True}, {"speed": 10, "exif": True})),
    "JPEG2000": (
        ("L", "LA", "RGB", "RGBA", "I;16"), ({}, {"irreversible": True}, {"no_jp2": True}, {"tile_size": (16, 16)}),
    ),
}  # fmt: skip
BUILT = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000", "TIFF": "libtiff"}


@cache
def seeds(kind: str) -> tuple[bytes, ...]:
    """Sound files of a format; what this build of Pillow can't write is left out."""
    modes, ways = KINDS[kind]
    made = [_written(kind, mode, side, way) for mode in modes for way in ways for side in (17, 40)]
    return tuple(data for data in made if data) + _by_hand(kind)


def _written(kind: str, mode: str, side: int, way: dict[str, Any]) -> bytes:
    options, memory, image = dict(way), io.BytesIO(), _picture(mode, side)
    if options.pop("text", False):
        return encoded(image.convert("RGB"), "png", SOME)
    if options.get("icc_profile"):
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if options.get("exif"):
        tags = Image.Exif()
        tags[0x112], tags[0x10F] = 6, "maker"
        options["exif"] = tags
    if options.get("save_all"):
        options["append_images"] = [
            _picture(mode, side // 2 if kind == "GIF" else side).transpose(Image.Transpose.ROTATE_90)
        ]
    try:
        image.save(memory, kind, **options)
    except (OSError, ValueError, KeyError):  # not every way goes with every mode
        return b""
    return memory.getvalue()


def _by_hand(kind: str) -> tuple[bytes, ...]:
    """What is read and never written by Pillow."""
    if kind == "PPM":
        return (
            b"P3 4 2 255\n" + b"1 200 37 " * 8,
            b"P6 4 2 65535\n" + bytes(range(48)),
            b"P2 # c\n4 2 9\n1 2 3 4 5 6 7 8",
        )
    if kind == "BMP":
        heading = (
            b"BM\0\0\0\0\0\0\0\0\x36\4\0\0\x28\0\0\0\x10\0\0\0\x10\0\0\0\1\0\x08\0\1\0\0\0" + bytes(20) + bytes(1024)
        )
        return (heading + b"\x10\5\0\0" * 8 + b"\0\2\3\1" + b"\0\4abcd" + b"\5\7\0\0" * 7 + b"\0\1",)
    return ()


def _picture(mode: str, side: int) -> Image.Image:
    random = Random(f"{mode}{side}")
    colours = Image.frombytes("RGB", (side, side), bytes(value // 8 * 8 for value in random.randbytes(3 * side * side)))
    colours.paste((200, 30, 40), (2, 2, side // 2, side // 2))
    if mode == "LAB":
        return ImageCms.profileToProfile(
            colours, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )  # type: ignore[return-value]
    if mode == "I;16":
        return Image.frombytes("I;16", (side, side), random.randbytes(2 * side * side))
    return colours.convert(mode)


def _maker(kind: str) -> Callable[[Random, Path], Path]:
    change = mutated_png if kind == "PNG" else mutated

    def make(random: Random, folder: Path) -> Path:
        files = seeds(kind)
        path = folder / f"x{random.choice(['.png', '.jpg', '.tif'])}"  # which no reader goes by
        path.write_bytes(change(random, random.choice(files), files))
        return path

    return make


def _of_any_kind(random: Random, folder: Path) -> Path:
    """A mutated file; one in four goes on as one of another kind."""
    kinds: Sequence[str] = list(MAKERS)
    if random.random() < 0.75:
        return MAKERS[random.choice(kinds)](random, folder)
    files = [random.choice(seeds(random.choice(kinds))) for _ in range(2)]
    (folder / "x.png").write_bytes(mutated(random, files[0], files))
    return folder / "x.png"


def read(path: Path) -> None:
    """As commands and folders of pictures do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from_pil(open_image(path), 16)


def _noted(random: Random, folder: Path) -> Path:
    files = [encoded(_picture("RGB", 20), suffix, SOME) for suffix in ("png", "jpg")]
    (folder / "x.png").write_bytes(
        mutated_png(random, files[0], files) if random.random() < 0.5 else mutated(random, files[1], files)
    )
    return folder / "x.png"


MAKERS = {kind: _maker(kind) for kind in KINDS if kind not in BUILT or features.check(BUILT[kind])}
CASES = {kind: Case(make, read, MEMORY) for kind, make in MAKERS.items()}
CASES |= {"of any kind": Case(_of_any_kind, read, MEMORY), "metadata": Case(_noted, read_metadata, MEMORY)}
