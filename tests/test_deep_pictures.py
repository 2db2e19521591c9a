"""More than 8 bits a channel: what is black, what is white, and what is said about it."""

import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_2.errors import DataError, UsageError
from dalle_2.images import from_pil, open_image

MEANT = [0, 64, 128, 191, 255]
SHARES = np.array(MEANT) / 255


def levels(image: Image.Image) -> list[int]:
    row = np.asarray(image)
    assert (row == row[..., :1]).all()
    return row[0, :, 0].tolist()


def near(found: list[int], wanted: list[int], most: int = 1) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= most


def tiff(path: Path, pixels: np.ndarray, *, order: str = "<", photometric: int = 1, bits: int | None = None) -> Path:
    """One uncompressed channel, written from the format's definition; `bits`: 12 for two pixels in three bytes."""
    height, width = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = _packed(pixels) if bits == 12 else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits or 8 * pixels.itemsize), (259, 3, 1), (262, 3, photometric),
        (273, 4, 0), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, kind),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    table = struct.pack(order + "H", len(entries))
    for tag, form, value in entries:
        value = start if tag == 273 else value
        packed = struct.pack(order + "I", value) if form == 4 else struct.pack(order + "HH", value, 0)
        table += struct.pack(order + "HHI", tag, form, 1) + packed
    heading = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    path.write_bytes(heading + table + bytes(4) + data)
    return path


def _packed(pixels: np.ndarray) -> bytes:
    pairs = pixels.reshape(-1, 2).astype(int)
    return bytes(v for a, b in pairs for v in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))


def ramp(low: float, high: float, dtype: str) -> np.ndarray:
    values = low + SHARES * (high - low)
    return np.tile(values if dtype.startswith("f") else values.round(), (2, 1)).astype(dtype)


# (numbers, byte order): their range is their own, and nothing is said.
KNOWN = {
    "16 bits": (ramp(0, 65535, "u2"), "<"),
    "16 bits, big end first": (ramp(0, 65535, "u2"), ">"),
    "floats": (ramp(0, 1, "f4"), "<"),
    "floats, big end first": (ramp(0, 1, "f4"), ">"),
    "32 bits that hold 8": (ramp(0, 255, "i4"), "<"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_ranges(name: str, tmp_path: Path) -> None:
    pixels, order = KNOWN[name]
    path = tiff(tmp_path / "x.tif", pixels, order=order)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert near(levels(open_image(path)), MEANT)


def test_a_dark_picture_of_a_known_range_stays_dark(tmp_path: Path) -> None:
    for pixels in (ramp(0, 6553.5, "u2"), ramp(0, 0.1, "f4"), ramp(0, 25.5, "i4")):
        assert near(levels(open_image(tiff(tmp_path / "x.tif", pixels))), [0, 6, 13, 19, 26])


# (numbers, byte order, what is shown as black and white)
FOUND = {
    "floats a little above 1": (ramp(0, 1.02, "f4"), "<", "0 is shown as black and 1.02 as white"),
    "floats of 12 bits": (ramp(0, 4095, "f4"), "<", "0 is shown as black and 4095 as white"),
    "floats of 8 bits": (ramp(0, 250, "f4"), ">", "0 is shown as black and 250 as white"),
    "floats below nothing": (ramp(-2, 3, "f4"), "<", "-2 is shown as black and 3 as white"),
    "integers to 300": (ramp(0, 300, "i4"), "<", "0 is shown as black and 300 as white"),
    "integers, big end first": (ramp(0, 100_000, "i4"), ">", "0 is shown as black and 100000 as white"),
    "integers below nothing": (ramp(-1000, 3000, "i4"), "<", "-1000 is shown as black and 3000 as white"),
    "signed 16 bits": (ramp(-1024, 3071, "i2"), "<", "-1024 is shown as black and 3071 as white"),
    "signed 16 bits, big end first": (ramp(-1024, 3071, "i2"), ">", "-1024 is shown as black and 3071 as white"),
    "unsigned 32 bits": (ramp(0, 2**32 - 256, "u4"), "<", "0 is shown as black and 4.29497e+09 as white"),
}


@pytest.mark.parametrize("name", FOUND)
def test_other_ranges_are_found_and_said(name: str, tmp_path: Path) -> None:
    pixels, order, said = FOUND[name]
    path = tiff(tmp_path / "x.tif", pixels, order=order)
    with pytest.warns(UserWarning, match=rf"^{path} has numbers from .*: {said}$".replace("+", r"\+")):
        assert near(levels(open_image(path)), MEANT)


def test_a_range_that_does_not_begin_at_nothing_keeps_its_black(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="0 is shown as black and 1000 as white"):
        found = levels(open_image(tiff(tmp_path / "x.tif", ramp(500, 1000, "f4"))))
    assert near(found, [128, 160, 192, 223, 255])


def test_twelve_bits_and_white_that_is_nothing(tmp_path: Path) -> None:
    twelve = tiff(tmp_path / "x.tif", np.tile([0, 1024, 2048, 4095], (2, 1)).astype("u2"), bits=12)
    assert near(levels(open_image(twelve)), [0, 64, 128, 255])
    for pixels in (ramp(0, 65535, "u2"), ramp(0, 1, "f4")):
        path = tiff(tmp_path / "y.tif", pixels, photometric=0)
        assert near(levels(open_image(path)), MEANT[::-1], 2)


def test_what_is_no_number(tmp_path: Path) -> None:
    odd = np.array([[0, 0.5, 1, np.nan, np.inf, -np.inf]], np.float32)
    assert levels(open_image(tiff(tmp_path / "x.tif", odd))) == [0, 128, 255, 0, 255, 0]
    with pytest.warns(UserWarning, match="2 as white"):
        assert levels(open_image(tiff(tmp_path / "x.tif", odd * 2))) == [0, 128, 255, 0, 255, 0]
    nothing = np.full((2, 2), np.nan, np.float32)
    with pytest.raises(DataError, match=r"can't read .*x\.tif as a picture: it has no finite number: every pixel is"):
        open_image(tiff(tmp_path / "x.tif", nothing))
    with pytest.raises(UsageError, match="no finite number"):
        from_pil(Image.fromarray(nothing))


def test_all_the_same(tmp_path: Path) -> None:
    for value, shown in ((0, 0), (1, 255)):
        assert set(levels(open_image(tiff(tmp_path / "x.tif", np.full((2, 2), value, "f4"))))) == {shown}
    with pytest.warns(UserWarning, match="-5 is shown as black and -5 as white"):
        assert set(levels(open_image(tiff(tmp_path / "x.tif", np.full((2, 2), -5, "f4"))))) == {0}


def test_every_kind_of_sixteen_bits_in_memory() -> None:
    for mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        image = Image.new(mode, (5, 1))
        for x, value in enumerate(KNOWN["16 bits"][0][0].tolist()):
            image.putpixel((x, 0), value)
        found = ((from_pil(image) + 1) * 127.5).round()[0, 0].int().tolist()
        assert near(found, MEANT)


def test_sixteen_bits_of_a_pgm(tmp_path: Path) -> None:
    for most in (65535, 4095):
        values = (SHARES * most).round().astype(">u2")
        (tmp_path / "x.pgm").write_bytes(b"P5 5 1 %d\n" % most + values.tobytes())
        assert near(levels(open_image(tmp_path / "x.pgm")), MEANT)


def png(path: Path, depth: int, colour_type: int, rows: list[bytes], key: bytes = b"") -> Path:
    """A PNG by hand, as Pillow writes no deep colours; `rows` without filter bytes, of one row here."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    width = len(rows[0]) * 8 // (depth * channels)
    heading = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", heading) + (chunk(b"tRNS", key) if key else b"")
    body += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return path


def test_sixteen_bits_of_a_png(tmp_path: Path) -> None:
    sixteen = (SHARES * 65535).round().astype(">u2")
    colours = np.stack([sixteen, sixteen[::-1], sixteen], -1).tobytes()
    opened = np.asarray(open_image(png(tmp_path / "x.png", 16, 2, [colours])))
    assert near(opened[0, :, 0].tolist(), MEANT)
    assert near(opened[0, :, 1].tolist(), MEANT[::-1])
    half = np.stack([sixteen, np.full(5, 32768)], -1).astype(">u2").tobytes()
    assert near(levels(open_image(png(tmp_path / "y.png", 16, 4, [half]))), [127, 159, 191, 223, 255], 2)


def test_the_colour_that_stands_for_nothing_in_each_depth(tmp_path: Path) -> None:
    """It shows white; its neighbours, which differ by one step, don't."""
    grey = np.array([300, 301, 65535, 0], ">u2").tobytes()
    assert levels(open_image(png(tmp_path / "a.png", 16, 0, [grey], struct.pack(">H", 300)))) == [255, 1, 255, 0]
    two_bits = bytes([0b00011011])
    assert levels(open_image(png(tmp_path / "b.png", 2, 0, [two_bits], b"\0\1"))) == [0, 255, 170, 255]
    four_bits = bytes([0x01, 0x2F])
    assert levels(open_image(png(tmp_path / "c.png", 4, 0, [four_bits], b"\0\2"))) == [0, 17, 255, 255]
    red = np.array([[40000, 200, 0], [0, 0, 200], [0, 40000, 0]], ">u2").tobytes()
    opened = open_image(png(tmp_path / "d.png", 16, 2, [red], struct.pack(">HHH", 40000, 200, 0)))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (0, 0, 0), (0, 156, 0)]


def test_large_pictures_are_halved_and_small_ones_are_not(tmp_path: Path) -> None:
    """An odd side keeps its last row; a JPEG, which is decoded smaller, and a PNG come equally large."""
    width, height = 8193, 4097
    levels = (np.arange(width) * 255 // (width - 1)).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(levels, (height, width)).copy())
    image.save(tmp_path / "x.png", compress_level=1)
    image.save(tmp_path / "x.jpg", quality=95)
    for name in ("x.png", "x.jpg"):
        opened = open_image(tmp_path / name)
        assert opened.size == (4097, 2049)
        for x, y in ((0, 0), (2000, 1000), (4096, 2048)):
            assert abs(opened.getpixel((x, y))[0] - x * 255 // 4096) <= 2
    image.crop((0, 0, 8192, 4096)).save(tmp_path / "y.png", compress_level=1)
    assert open_image(tmp_path / "y.png").size == (8192, 4096)


def test_formats_that_cost_much_memory_have_a_limit_of_their_own(tmp_path: Path) -> None:
    heading = struct.pack("<I", (4999) | (5000 << 14))  # 5000 x 5001, lossless
    (tmp_path / "x.webp").write_bytes(b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f" + heading + bytes(10))
    with pytest.raises(
        DataError, match=r"x\.webp: 5000 x 5001 pixels are more than 25,000,000, as many as are read of"
    ):
        open_image(tmp_path / "x.webp")


COSTS = """
import sys
from pathlib import Path
from dalle_2.images import open_image

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

before = peak()
print(open_image(sys.argv[1]).size, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
def test_the_largest_picture_costs_less_than_600_megabytes(tmp_path: Path) -> None:
    """Nearly 90 million 32-bit integers, the most that a pixel takes; zeros, which a disk stores as nothing."""
    side = 9456
    path = tiff(tmp_path / "x.tif", np.zeros((1, 1), "i4"))
    heading = bytearray(path.read_bytes())
    for tag, value in ((256, side), (257, side), (278, side), (279, 4 * side * side)):
        place = heading.index(struct.pack("<HHI", tag, 4, 1))
        heading[place + 8 : place + 12] = struct.pack("<I", value)
    path.write_bytes(heading)
    with path.open("r+b") as file:
        file.truncate(len(heading) - 4 + 4 * side * side)
    done = subprocess.run([sys.executable, "-c", COSTS, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"({side // 2}, {side // 2}) ")
    assert int(done.stdout.split()[-1]) < 600
