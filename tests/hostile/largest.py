"""The largest pictures that are read, of every format and of every mode that costs more than others: their cost.

`python -m hostile.largest FOLDER` makes them; `python -m hostile.largest FILE` reads one and says its megabytes and
seconds.
"""

import struct
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

from dalle_2.images import from_pil, open_image
from dalle_2.images.layers import LARGE
from dalle_2.images.limits import MAX_PIXELS
from dalle_2.images.matrix_profile import adobe_rgb
from hostile.child import _marked, _status

MOST, COSTLY, FOUR, TURNED, KEPT = MAX_PIXELS, 25_000_000, 24_000_000, 70_000_000, 66_666_666
WHOLE = LARGE  # what isn't halved goes through its profile whole


def made(folder: Path) -> Iterator[Path]:
    """Black ones, which a disk holds in little; what they cost is the same."""
    tags = Image.Exif()
    tags[0x112] = 6
    adobe = adobe_rgb()
    packed = {"compression": "tiff_adobe_deflate"}
    ways: list[tuple[str, str, int, dict[str, Any]]] = [
        *[(f"{mode}.tif", mode, MOST, packed) for mode in ("1", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "I")],
        *[(f"{mode}.tif", mode, MOST, packed) for mode in ("I;16", "F")],
        *[(f"{mode}-turned.tif", mode, TURNED, packed | {"tiffinfo": {0x112: 6}}) for mode in ("RGBA", "CMYK", "F")],
        ("jpeg.tif", "RGB", MOST, {"compression": "jpeg"}),
        *[(f"{mode}.jpg", mode, MOST, {"exif": tags}) for mode in ("L", "RGB", "CMYK")],
        ("RGB-scans.jpg", "RGB", KEPT, {"progressive": True, "subsampling": 0}),
        ("CMYK-scans.jpg", "CMYK", 50_000_000, {"progressive": True, "subsampling": 0}),
        ("RGB-thrifty-scans.jpg", "RGB", MOST, {"progressive": True, "subsampling": 2}),
        ("RGB-profile.jpg", "RGB", WHOLE, {"icc_profile": adobe, "exif": tags}),
        ("RGBA-profile.png", "RGBA", WHOLE, {"icc_profile": adobe, "exif": tags, "compress_level": 1}),
        *[(f"{mode}.webp", mode, COSTLY, {"lossless": True, "icc_profile": adobe}) for mode in ("RGB", "RGBA")],
        ("frames.webp", "RGBA", COSTLY, {"save_all": True, "append_images": True, "lossless": True, "method": 0}),
        ("RGBA.avif", "RGBA", COSTLY, {"speed": 10, "subsampling": "4:4:4"}),
        *[(f"{mode}.jp2", mode, COSTLY, {}) for mode in ("RGB", "I;16")], ("RGBA.jp2", "RGBA", FOUR, {}),
        ("P.gif", "P", MOST, {}),
        ("RGBA.bmp", "RGBA", MOST, {}), ("RGBA.tga", "RGBA", MOST, {"compression": "tga_rle"}),
        ("L16.pgm", "I;16", MOST, {}), ("RGB.ppm", "RGB", MOST, {}), ("F.pfm", "F", MOST, {}),
        ("frames.mpo", "RGB", MOST, {"save_all": True, "append_images": True}),
    ]  # fmt: skip
    for name, mode, pixels, options in ways:
        side = int(pixels**0.5)
        if options.get("append_images"):
            options["append_images"] = [Image.new(mode, (side, side), 1)]
        Image.new(mode, (side, side)).save(folder / name, **options)
        yield folder / name
    for name, bits, colour, channels, key in (
        ("grey16.png", 16, 0, 1, bytes(2)), ("RGBA16.png", 16, 6, 4, b""), ("RGBA.png", 8, 6, 4, b""),
        ("RGB-key.png", 8, 2, 3, bytes(6)),
    ):  # fmt: skip
        yield _png(folder / name, bits, colour, channels, key)
    yield _icon(folder / "x.ico")


def _png(path: Path, bits: int, colour: int, channels: int, key: bytes, side: int = int(MOST**0.5)) -> Path:
    packer, row = zlib.compressobj(1), bytes(1 + side * channels * bits // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    heading = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    parts = [b"IHDR" + heading, *([b"tRNS" + key] if key else []), b"IDAT" + pixels, b"IEND"]
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def _icon(path: Path) -> Path:
    picture = _png(path, 8, 6, 4, b"", int(COSTLY**0.5)).read_bytes()
    path.write_bytes(struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(picture), 22) + picture)
    return path


def cost(path: Path) -> None:
    """Prints megabytes and seconds of the processor."""
    ImageCms.createProfile("sRGB")  # loaded once, whichever picture comes first
    warnings.simplefilter("ignore")
    before, began = _marked(), time.process_time()
    from_pil(open_image(path), 64)
    print((_status("VmHWM") - before) // 10**6, round(time.process_time() - began, 1))


if __name__ == "__main__":
    given = Path(sys.argv[1])
    if given.is_dir():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        for found in made(given):
            print(found, flush=True)
    else:
        cost(given)
