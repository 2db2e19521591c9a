"""What a picture costs is known by its heading: small files that unfold into gigabytes or hours; pipes and devices."""

import io
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from dalle_2.cli.main import main
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError
from dalle_2.images import open_image, read_metadata, size_of
from dalle_2.images.limits import check_costs
from dalle_2.images.scans import scans


@pytest.fixture
def in_time() -> Iterator[None]:
    """What hangs is an error."""

    def end(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(path: Path, why: str) -> None:
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert re.search(why, str(caught.value)), caught.value
    assert path.name in str(caught.value)


def jpeg(side: int, mode: str = "RGB", **options: object) -> bytes:
    """A small JPEG whose heading says another size."""
    memory = io.BytesIO()
    Image.new(mode, (16, 16)).save(memory, "JPEG", **options)
    data = memory.getvalue()
    frame = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data)
    return data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 :]


# Several scans


def test_coefficients_of_several_scans_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for mode, side, options, most in (
        ("RGB", 8200, {"subsampling": 0}, "66,666,666"), ("CMYK", 7100, {"subsampling": 0}, "50,000,000"),
    ):  # fmt: skip
        path.write_bytes(jpeg(side, mode, progressive=True, **options))
        refused(path, rf"{side} x {side} pixels are more than {most}, as many as are read of a JPEG in several scans")
    for data in (jpeg(9400, progressive=True, subsampling=2), jpeg(9400, subsampling=0), jpeg(9400, "CMYK")):
        with Image.open(io.BytesIO(data)) as image:
            check_costs(image)


def test_scans_are_counted_to_the_end_of_the_picture(tmp_path: Path) -> None:
    data = jpeg(16, progressive=True)
    assert next(scans(data)) == 3
    usual = len(list(scans(data)))
    assert usual > 5
    last = data[data.rindex(b"\xff\xda") : -2]
    many = data[:-2] + last * 100 + b"\xff\xd9"
    assert len(list(scans(many))) == usual + 100
    (tmp_path / "x.jpg").write_bytes(many)
    refused(tmp_path / "x.jpg", "it has more than 100 scans: save it as a PNG")
    filmed = jpeg(16) + b"\xff\xda" * 1000  # cameras put a film behind the picture
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
    for sound in (filmed, data[:2] + thumbnail + data[2:]):
        (tmp_path / "x.jpg").write_bytes(sound)
        assert open_image(tmp_path / "x.jpg").size == (16, 16)


def test_channels_one_after_the_other_are_several_scans() -> None:
    """Sequential, and yet all of it is kept until the last channel came."""
    frame = b"\xff\xc0\0\x11\x08\0\x10\0\x10\x03\x01\x11\0\x02\x11\0\x03\x11\0"
    alone = [b"\xff\xda\0\x08\x01" + bytes([number]) + b"\0\0\x3f\0\x11\xff\x00\xff\xd0" for number in (1, 2, 3)]
    data = b"\xff\xd8" + frame + b"".join(alone) + b"\xff\xd9"
    assert list(scans(data)) == [1, 1, 1]
    side = struct.pack(">HH", 8200, 8200)
    with Image.open(io.BytesIO(data.replace(b"\0\x10\0\x10", side))) as image, pytest.raises(DataError, match="scans"):
        check_costs(image)


def test_odd_sides_are_decoded_smaller_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (5793, 5795), 90).save(tmp_path / "x.jpg")
    monkeypatch.setattr(Image.Image, "reduce", None)
    opened = open_image(tmp_path / "x.jpg")
    assert opened.size == (2897, 2898)
    assert opened.getpixel((2896, 2897)) == (90, 90, 90)
    assert size_of(tmp_path / "x.jpg") == (5793, 5795)


def test_upscale_says_what_was_read_smaller(
    micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (5801, 5800), 90).save("x.png", compress_level=1)
    Image.new("L", (32, 32), 90).save("y.png")
    assert main(["upscale", "x.png", "y.png", "--pipeline", str(micro_pipeline), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "x.png is 5801 x 5800: read as 2901 x 2900, as larger ones take too much memory" in said
    assert "y.png is 32 x 32: read" not in said


# Decoders that are slow, or take another copy


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_a_jpeg_2000_of_four_channels_has_a_limit_of_its_own(tmp_path: Path) -> None:
    for mode, wanted in (("RGBA", "24,000,000, as many as are read of a JPEG2000 of four channels"), ("RGB", "")):
        Image.new(mode, (8, 8)).save(tmp_path / "x.j2k", no_jp2=True)
        data = bytearray((tmp_path / "x.j2k").read_bytes())
        data[8:16] = struct.pack(">II", 4900, 4900)  # of the image, and then of its one tile
        data[24:32] = struct.pack(">II", 4900, 4900)
        (tmp_path / "x.j2k").write_bytes(data)
        with Image.open(tmp_path / "x.j2k") as image:
            assert image.size == (4900, 4900)
            if not wanted:
                check_costs(image)
                continue
        refused(tmp_path / "x.j2k", f"4900 x 4900 pixels are more than {wanted}")


def test_what_is_decoded_slowly_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(b"P6 2001 2000 65535\n")
    refused(tmp_path / "x.ppm", "more than 4,000,000, as many as are read of a PPM of other numbers than 0 to 255")
    (tmp_path / "x.ppm").write_bytes(b"P3 2001 2000 255\n")
    refused(tmp_path / "x.ppm", "more than 4,000,000, as many as are read of a PPM in plain text")
    (tmp_path / "x.ppm").write_bytes(b"P6 2001 2000 255\n" + bytes(3 * 2001 * 2000))
    assert open_image(tmp_path / "x.ppm").size == (2001, 2000)
    heading = struct.pack("<IiiHHIIiiII", 40, 5001, 5000, 1, 8, 1, 0, 0, 0, 0, 0)
    (tmp_path / "x.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 1078, 0, 0, 1078) + heading + bytes(1024))
    refused(tmp_path / "x.bmp", "more than 25,000,000, as many as are read of a BMP that is packed")


def test_a_tiff_that_is_to_be_turned_has_a_limit(tmp_path: Path) -> None:
    for turn, why in (
        (6, "more than 70,000,000, as many as are read of a TIFF that is to be turned"),
        (1, "truncated"),
    ):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x112] = turn
        Image.new("L", (8, 8)).save(tmp_path / "x.tif", tiffinfo=tags)
        data = bytearray((tmp_path / "x.tif").read_bytes())
        for tag in (256, 257, 278):
            entries = [struct.pack("<HHI", tag, kind, 1) for kind in (3, 4)]
            place = next(data.index(entry) for entry in entries if entry in data)
            data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 8400)
        (tmp_path / "x.tif").write_bytes(data)
        refused(tmp_path / "x.tif", why)


def png_heading(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_the_picture_in_an_icon_counts_and_not_its_table(tmp_path: Path) -> None:
    """Pillow loads it when it is opened, up to twice as many pixels as it warns of."""
    table = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, 100, 22)
    bitmap = struct.pack("<IiiHHIIiiII", 40, 5001, 10_000, 1, 32, 0, 0, 0, 0, 0, 0)
    for picture in (png_heading(5001, 5000), bitmap):
        (tmp_path / "x.ico").write_bytes(table + picture)
        refused(tmp_path / "x.ico", r"5001 x \d+ pixels are more than 25,000,000, as many as are read of an ICO")
    Image.new("RGBA", (32, 32), (200, 0, 0, 255)).save(tmp_path / "x.ico")
    assert open_image(tmp_path / "x.ico").getpixel((3, 3)) == (200, 0, 0)
    (tmp_path / "x.ico").write_bytes(b"\0\0\1\0\xff")
    refused(tmp_path / "x.ico", "can't read")


def test_no_side_is_longer_than_a_strip(tmp_path: Path) -> None:
    pixels = bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "x.png").write_bytes(png_heading(2**20 + 1, 3) + pixels)
    refused(tmp_path / "x.png", r"1048577 x 3 pixels: no side may have more than 1,048,576")


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
def test_deep_grey_with_a_colour_for_nothing_is_halved_strip_by_strip(tmp_path: Path) -> None:
    side = 6500
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(bytes(1 + 2 * side)) for _ in range(side)) + packer.flush()
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0), b"tRNS\0\0", b"IDAT" + pixels, b"IEND"]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    done = subprocess.run([sys.executable, "-c", COSTS, str(tmp_path / "x.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(3250, 3250) ")
    assert int(done.stdout.split()[-1]) < 220


# No plain files


@pytest.mark.usefixtures("in_time")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
class TestPipes:
    def test_a_pipe_or_a_device_is_no_picture(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.png")
        for path in (tmp_path / "x.png", Path("/dev/zero"), Path("/dev/tty")):
            for read in (open_image, read_metadata, size_of):
                with pytest.raises((DataError, OSError), match="it is a pipe or a device, no plain file"):
                    read(path)
        with pytest.raises(DataError, match="Is a directory"):
            open_image(tmp_path)

    def test_a_pipe_among_pictures_is_left_out_and_named(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name)
            (tmp_path / name).with_suffix(".txt").write_text("a picture")
        os.mkfifo(tmp_path / "c.png")
        (tmp_path / "c.txt").write_text("a pipe")
        (tmp_path / "b.txt").unlink()
        os.mkfifo(tmp_path / "b.txt")
        data = ImageFolder(tmp_path, 8)
        assert [data.file(row) for row in range(len(data))] == ["a.png", "c.png"]
        assert data.verify().names == {"caption can't be read": ("b.png",), "not a picture": ("c.png",)}
        assert data.digest(1) == ""
        assert data.shorter_side(1) is None
        assert len(data.fingerprint()) == 64

    def test_a_table_that_is_a_pipe_is_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        os.mkfifo(tmp_path / "captions.csv")
        with pytest.raises(DataError, match=r"captions\.csv: it is a pipe or a device, no plain file"):
            ImageFolder(tmp_path, 8)

    def test_a_pipe_that_takes_a_pictures_place_is_a_damaged_one(self, tmp_path: Path) -> None:
        """Between a look at a folder and the next."""
        for name in ("a.png", "b.png"):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
            (tmp_path / name).with_suffix(".txt").write_text("a picture")
        data = ImageFolder(tmp_path, 8)
        (tmp_path / "b.png").unlink()
        os.mkfifo(tmp_path / "b.png")
        assert data[1].caption == "a picture"
        assert data.report().names == {"not a picture": ("b.png",)}


def test_a_file_of_captions_has_a_limit(tmp_path: Path) -> None:
    """Holes, which a disk stores as nothing, and memory doesn't."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a picture")
    os.truncate(tmp_path / "b.txt", 2**24 + 1)
    data = ImageFolder(tmp_path, 8)
    assert data.report().names == {"caption can't be read": ("b.png",)}
    (tmp_path / "captions.csv").touch()
    os.truncate(tmp_path / "captions.csv", 2**30 + 1)
    with pytest.raises(DataError, match=r"captions\.csv has 1,073,741,825 bytes, and captions at most 1,073,741,824"):
        ImageFolder(tmp_path, 8)
