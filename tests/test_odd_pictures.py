"""Sound pictures with odd things in them: every mode, wrong tags, long texts, several frames."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin, features

from dalle_2.errors import DataError
from dalle_2.images import from_pil, open_image, read_metadata, save_image
from dalle_2.inference.holes import holed
from dalle_2.metadata import reading_long_texts

RED, BLUE = (255, 0, 0), (0, 0, 255)
TURNED = 6  # show it rotated by 90 degrees, clockwise


def halves() -> Image.Image:
    """40 x 20, red on the left: turned, red is on top."""
    image = Image.new("RGB", (40, 20), BLUE)
    image.paste(RED, (0, 0, 20, 20))
    return image


def stands(path: Path, most: int = 40) -> bool:
    opened = open_image(path)
    if opened.size != (20, 40):
        return False
    top, bottom = np.array(opened.getpixel((10, 5))), np.array(opened.getpixel((10, 35)))
    return bool(np.abs(top - RED).max() <= most and np.abs(bottom - BLUE).max() <= most)


def exif(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """(tag, type, count, four bytes of value)"""
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries)
    return b"Exif\0\0II" + struct.pack("<HI", 42, 8) + table + bytes(4)


ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", TURNED, 0))
ODD_EXIF = {
    "a resolution in letters": exif([ORIENTATION, (0x011A, 2, 3, b"72\0\0")]),
    "a resolution in bytes": exif([ORIENTATION, (0x011A, 7, 4, b"\0\1\2\3")]),
    "a maker in numbers": exif([(0x010F, 3, 1, b"\1\0\0\0"), ORIENTATION]),
    "a tag of no type": exif([ORIENTATION, (0x011A, 99, 1, bytes(4))]),
    "a tag that leads out of it": exif([ORIENTATION, (0x8769, 4, 1, struct.pack("<I", 60_000))]),
    "cut": exif([ORIENTATION, (0x011A, 5, 1, struct.pack("<I", 4000))])[:-6],
    "a longer orientation": exif([(0x0112, 4, 1, struct.pack("<I", TURNED))]),
    "two orientations in one": exif([(0x0112, 3, 2, struct.pack("<HH", TURNED, 1))]),
}


@pytest.mark.parametrize("name", ODD_EXIF)
@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
@pytest.mark.filterwarnings("ignore:Metadata Warning:UserWarning")
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
def test_an_orientation_counts_whatever_else_is_wrong(name: str, tmp_path: Path) -> None:
    halves().save(tmp_path / "x.jpg", exif=ODD_EXIF[name], quality=95, subsampling=0)
    assert stands(tmp_path / "x.jpg")


def test_pillow_itself_gives_up_on_such_a_picture() -> None:
    """Or this file would prove nothing."""
    buffer = io.BytesIO()
    halves().save(buffer, "JPEG", exif=ODD_EXIF["a resolution in letters"])
    with pytest.raises(Exception, match=".+"):
        ImageOps.exif_transpose(Image.open(buffer))


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
def test_an_orientation_that_is_none_counts_as_none(tmp_path: Path) -> None:
    for value in ((0x0112, 3, 1, b"\x09\0\0\0"), (0x0112, 2, 4, b"top\0"), (0x0112, 3, 1, b"\0\0\0\0")):
        halves().save(tmp_path / "x.jpg", exif=exif([value]))
        assert open_image(tmp_path / "x.jpg").size == (40, 20)
    halves().save(tmp_path / "x.jpg", exif=b"Exif\0\0rubbish")
    assert open_image(tmp_path / "x.jpg").size == (40, 20)


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def test_orientation_in_every_format(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = TURNED
    formats = ["png", "webp", "tiff", "jpg"] + (["avif"] if features.check("avif") else [])
    for suffix in formats:
        halves().save(tmp_path / f"x.{suffix}", exif=tags)
        assert stands(tmp_path / f"x.{suffix}"), suffix
    halves().save(tmp_path / "xmp.jpg", xmp=XMP.encode())
    assert stands(tmp_path / "xmp.jpg")
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP)
    halves().save(tmp_path / "xmp.png", pnginfo=text)
    assert stands(tmp_path / "xmp.png")


def test_all_eight_orientations(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    turned = [
        pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.transpose(1, 0, 2), np.rot90(pixels, -1),
        np.rot90(pixels, 2).transpose(1, 0, 2), np.rot90(pixels),
    ]  # fmt: skip
    for orientation, wanted in enumerate(turned, 1):
        tags = Image.Exif()
        tags[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "x.png", exif=tags)
        opened = open_image(tmp_path / "x.png")
        assert np.array_equal(np.asarray(opened), wanted)
        assert ImageOps.exif_transpose(opened).size == opened.size  # nobody turns it again


def test_what_pillow_opened_is_turned_and_what_a_hand_turned_is_not(tmp_path: Path) -> None:
    """A picture that was worked on still carries the camera's word, which may no longer hold."""
    tags = Image.Exif()
    tags[0x0112] = TURNED
    halves().save(tmp_path / "x.png", exif=tags)
    with Image.open(tmp_path / "x.png") as lazy:
        by_hand = lazy.transpose(Image.Transpose.ROTATE_270)
        assert by_hand.getexif()[0x0112] == TURNED
        wanted = from_pil(open_image(tmp_path / "x.png"))
        assert wanted.shape == (3, 40, 20)
        for image in (lazy, by_hand, ImageOps.exif_transpose(lazy)):
            assert torch.equal(from_pil(image), wanted)
        assert lazy.size == (40, 20)
        mask = Image.new("L", (20, 40), 0)  # painted over what a viewer shows
        mask.paste(255, (0, 10, 20, 20))
        hole = holed(lazy, mask, 20).hole[0]
    assert hole.any(1).tolist() == [True] * 10 + [False] * 10
    assert hole[:10].all()


def test_a_picture_with_much_text_is_read(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "very long " * 300_000, zip=True)
    text.add_itxt("more", "x" * 2_000_000, zip=True)
    halves().save(tmp_path / "x.png", pnginfo=text)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(tmp_path / "x.png")
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert np.array_equal(np.asarray(open_image(tmp_path / "x.png")), np.asarray(halves()))
    assert read_metadata(tmp_path / "x.png") is None
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_text_behind_the_pixels_too(tmp_path: Path) -> None:
    halves().save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    body = b"zTXtworkflow\0\0" + zlib.compress(b"very long " * 300_000)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "x.png").write_bytes(whole[:-12] + chunk + whole[-12:])
    assert open_image(tmp_path / "x.png").size == (40, 20)


def test_a_bomb_of_text_is_refused_and_other_errors_pass(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * (2**26 + 1), zip=True)
    halves().save(tmp_path / "x.png", pnginfo=text)
    with pytest.raises(DataError, match=r"can't read .*x\.png as a picture: Decompressed data too large"):
        open_image(tmp_path / "x.png")

    def fail() -> None:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        reading_long_texts(fail)


# What each mode shows of the same colour (200, 100, 50), or of its grey.
WEB = (204, 102, 51)  # the nearest of the palette that Pillow takes
GREY = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
MODES = {
    "1": (255,) * 3, "L": (GREY,) * 3, "LA": (GREY,) * 3, "La": (GREY,) * 3, "P": WEB,
    "PA": WEB, "RGB": (200, 100, 50), "RGBA": (200, 100, 50), "RGBa": (200, 100, 50),
    "RGBX": (200, 100, 50), "CMYK": (200, 100, 50), "YCbCr": (200, 100, 50), "HSV": (200, 100, 50),
    "LAB": (200, 100, 50), "I": (GREY,) * 3, "I;16": (GREY,) * 3,
}  # fmt: skip


def in_mode(mode: str) -> Image.Image:
    colour = Image.new("RGB", (8, 8), (200, 100, 50))
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode == "1":
        return Image.new("1", (8, 8), 1)
    if mode == "I;16":
        return Image.fromarray(np.full((8, 8), GREY * 257, np.uint16))
    if mode in ("La", "PA", "RGBa"):
        colour = colour.convert({"La": "LA", "PA": "P", "RGBa": "RGBA"}[mode], dither=Image.Dither.NONE)
    return colour.convert(mode, dither=Image.Dither.NONE)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_memory(mode: str) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    image.info.pop("icc_profile", None)
    found = ((from_pil(image) + 1) * 127.5).round()[:, 4, 4]
    assert (found - from_pil(Image.new("RGB", (1, 1), MODES[mode]))[:, 0, 0].add(1).mul(127.5)).abs().max() <= 3
    half = ((from_pil(image, 4) + 1) * 127.5).round()[:, 2, 2]
    assert (half - found).abs().max() <= 1


def test_no_mode_of_pillow_is_forgotten() -> None:
    left = {"F", "I;16B", "I;16L", "I;16N"}  # test_deep_pictures.py
    assert {*MODES, *left} >= {*getattr(Image, "MODES", ())}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16"])
def test_every_mode_from_a_file(mode: str, tmp_path: Path) -> None:
    image = in_mode(mode)
    image.info.pop("icc_profile", None)
    image.save(tmp_path / "x.tif")
    found = open_image(tmp_path / "x.tif").getpixel((4, 4))
    assert np.abs(np.array(found) - MODES[mode]).max() <= 3


def test_grey_that_was_multiplied_by_its_alpha(tmp_path: Path) -> None:
    """Mode La, which Pillow reads from a TIFF and turns into nothing by itself."""
    entries = [
        (256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 2, 8 | 8 << 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
        (277, 3, 1, 2), (278, 4, 1, 1), (279, 4, 1, 4), (338, 3, 1, 1),
    ]  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    (tmp_path / "x.tif").write_bytes(b"II" + struct.pack("<HI", 42, 12) + bytes([50, 128, 200, 255]) + table)
    with Image.open(tmp_path / "x.tif") as image:
        assert image.mode == "La"
    opened = open_image(tmp_path / "x.tif")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(177,) * 3, (200,) * 3]  # 50 + 255 - 128


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_half_transparent_shows_half_white(mode: str) -> None:
    plain = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    if mode == "PA":
        image = Image.new("P", (4, 4))
        image.putpalette(WEB)
        image = image.convert("PA")
        image.putalpha(128)
        assert image.mode == "PA"
    elif mode == "La":
        image = plain.convert("LA").convert("La")
    else:
        image = plain.convert(mode)
    wanted = np.array(MODES[mode]) * 128 / 255 + 127
    found = ((from_pil(image) + 1) * 127.5)[:, 1, 1].numpy()
    assert np.abs(found - wanted).max() <= 2


def test_palettes_with_an_alpha_for_each_colour(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *BLUE, 0, 0, 0])
    for x in range(3):
        image.putpixel((x, 0), x)
    image.save(tmp_path / "x.png", transparency=b"\x00\x80\xff")
    opened = open_image(tmp_path / "x.png")
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (127, 127, 255), (0, 0, 0)]


def test_the_first_frame_counts(tmp_path: Path) -> None:
    first, second = halves(), ImageOps.mirror(halves())
    for name, options in (
        ("x.webp", {"lossless": True}), ("x.png", {}), ("x.tiff", {}), ("x.gif", {"disposal": 2}),
        ("y.gif", {"disposal": 3}),
    ):  # fmt: skip
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        assert np.array_equal(np.asarray(open_image(tmp_path / name)), np.asarray(first)), name
    first.save(tmp_path / "x.mpo", format="MPO", save_all=True, append_images=[second], quality=95)
    (tmp_path / "x.mpo").rename(tmp_path / "x.jpg")
    assert open_image(tmp_path / "x.jpg").getpixel((5, 10))[0] > 200
    half = Image.new("RGBA", (8, 8), (*RED, 255))
    half.paste((0, 0, 0, 0), (4, 0, 8, 8))
    half.save(tmp_path / "clear.gif", save_all=True, append_images=[half.transpose(0)], disposal=2)
    opened = open_image(tmp_path / "clear.gif")
    assert [opened.getpixel((x, 4)) for x in (1, 6)] == [RED, (255, 255, 255)]


def test_what_comes_out_is_pixels_and_nothing_else(tmp_path: Path) -> None:
    save_image(halves(), tmp_path / "x.jpg", {"seed": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_image(tmp_path / "x.jpg")
    assert (opened.mode, opened.info, type(opened)) == ("RGB", {}, Image.Image)
    assert not opened.getexif()


def test_what_pillow_does_not_know_is_one_sentence(tmp_path: Path) -> None:
    """A TIFF of double numbers, which Pillow doesn't read."""
    entries = [(256, 4, 1), (257, 4, 1), (258, 3, 64), (259, 3, 1), (262, 3, 1), (273, 4, 8), (339, 3, 3)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, f, 1, v) for t, f, v in entries)
    (tmp_path / "x.tif").write_bytes(b"II" + struct.pack("<HI", 42, 8) + table + bytes(16))
    with pytest.raises(DataError) as caught:
        open_image(tmp_path / "x.tif")
    assert str(caught.value).startswith(f"can't read {tmp_path / 'x.tif'} as a picture: ")
    assert "\n" not in str(caught.value)
