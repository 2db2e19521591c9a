"""Colour profiles: what comes in are sRGB's numbers, held against the definitions of the colour spaces."""

import io
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dalle_2.data.image_folder import ImageFolder
from dalle_2.images import from_pil, open_image
from dalle_2.images.matrix_profile import matrix_profile

SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
ADOBE_GAMMA = 2.19921875
WHITE = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])  # D65
COLOURS = [(230, 60, 50), (128, 128, 128), (255, 255, 255), (0, 0, 0), (90, 140, 60), (200, 180, 90)]


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """The textbook's way: the primaries' columns, scaled so that they sum to the white."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns @ np.diag(np.linalg.inv(columns) @ WHITE)


def encoded(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1's curve."""
    linear = linear.clip(0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (curve * 255).round()


def in_srgb(colour: tuple[int, ...], primaries: tuple[tuple[float, float], ...], gamma: float) -> np.ndarray:
    linear = (np.array(colour) / 255) ** gamma
    return encoded(np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries) @ linear)


def patches(colours: list[tuple[int, ...]], mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (8 * len(colours), 8))
    for k, colour in enumerate(colours):
        image.paste(colour if len(colour) > 1 else colour[0], (8 * k, 0, 8 * k + 8, 8))
    return image


def shown(image: Image.Image) -> list[tuple[int, ...]]:
    return [image.getpixel((x + 4, 4)) for x in range(0, image.width, 8)]


def close(found: list[tuple[int, ...]], wanted: list[np.ndarray], most: int = 1) -> bool:
    return int(np.abs(np.array(found) - np.array(wanted)).max()) <= most


SPACES = {"Display P3": (P3, 2.2), "Adobe RGB": (ADOBE, ADOBE_GAMMA)}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_wide_colours_come_as_srgb(space: str, suffix: str, tmp_path: Path) -> None:
    primaries, gamma = SPACES[space]
    options = {"png": {}, "tiff": {}, "webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}[suffix]
    patches(COLOURS).save(tmp_path / f"x.{suffix}", icc_profile=matrix_profile(primaries, gamma), **options)
    opened = open_image(tmp_path / f"x.{suffix}")
    wanted = [in_srgb(colour, primaries, gamma) for colour in COLOURS]
    assert close(shown(opened), wanted, 4 if suffix == "jpg" else 1)
    assert np.abs(wanted[0] - COLOURS[0]).max() > 8  # or nothing would have been shown
    assert "icc_profile" not in opened.info
    assert close(shown(open_image(tmp_path / f"x.{suffix}")), shown(opened), 0)


def test_a_red_of_p3_is_the_red_that_was_meant(tmp_path: Path) -> None:
    """(230, 60, 50) under P3's own curve, which is sRGB's, is (251, 25, 28) or so."""
    curve = b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *(round(v * 65536) for v in (2.4, *PARTS)))
    profile = matrix_profile(P3, 2.2)
    flat = b"curv" + struct.pack(">IIH", 0, 1, round(2.2 * 256)) + b"\0\0"
    assert profile.count(flat) == 3
    profile = with_curve(profile, flat, curve)
    Image.new("RGB", (8, 8), (230, 60, 50)).save(tmp_path / "x.png", icc_profile=profile)
    linear = np.array([(v + 0.055) / 1.055 for v in np.array([230, 60, 50]) / 255]) ** 2.4
    wanted = encoded(np.linalg.inv(to_xyz(SRGB)) @ to_xyz(P3) @ linear)
    assert np.abs(wanted - (251, 25, 28)).max() <= 8
    assert close([open_image(tmp_path / "x.png").getpixel((4, 4))], [wanted])


PARTS = (1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def with_curve(profile: bytes, flat: bytes, curve: bytes) -> bytes:
    """The profile with another curve, behind all that it has, for each channel."""
    table, made = profile[132 : 132 + 12 * 7], profile[:132]
    for k in range(7):
        name, start, length = struct.unpack(">4sII", table[12 * k : 12 * k + 12])
        place = (len(profile), len(curve)) if profile[start : start + length] == flat else (start, length)
        made += name + struct.pack(">II", *place)
    return struct.pack(">I", len(profile) + len(curve)) + made[4:] + profile[132 + 12 * 7 :] + curve


def test_srgb_by_any_writer_changes_no_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for k, profile in enumerate([ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), SRGB_BY_HAND]):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png", icc_profile=profile)
        assert np.array_equal(np.asarray(open_image(tmp_path / f"{k}.png")), pixels)


SRGB_BY_HAND = with_curve(
    matrix_profile(SRGB, 2.2),
    b"curv" + struct.pack(">IIH", 0, 1, round(2.2 * 256)) + b"\0\0",
    b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *(round(v * 65536) for v in (2.4, *PARTS))),
)


def test_transparency_and_palettes_keep_their_profile(tmp_path: Path) -> None:
    profile, colour = matrix_profile(ADOBE, ADOBE_GAMMA), (90, 140, 60)
    wanted = in_srgb(colour, ADOBE, ADOBE_GAMMA)
    image = Image.new("RGBA", (16, 8), (*colour, 255))
    image.paste((*colour, 0), (8, 0, 16, 8))
    image.save(tmp_path / "alpha.png", icc_profile=profile)
    assert close(shown(open_image(tmp_path / "alpha.png")), [wanted, np.full(3, 255)])
    Image.new("RGB", (8, 8), colour).quantize(4).save(tmp_path / "palette.png", icc_profile=profile)
    assert close(shown(open_image(tmp_path / "palette.png")), [wanted])
    grey = Image.new("L", (8, 8), 100)
    grey.save(tmp_path / "grey.png", icc_profile=profile)  # a grey picture with a profile of colours
    assert close(shown(open_image(tmp_path / "grey.png")), [in_srgb((100,) * 3, ADOBE, ADOBE_GAMMA)])


def grey_profile(gamma: float) -> bytes:
    """As `matrix_profile` writes them, with one curve."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    return icc_file(b"mntrGRAYXYZ ", {b"wtpt": D50_TAG, b"kTRC": curve})


D50_TAG = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)


def icc_file(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    start = 132 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data
    heading = struct.pack(">I", start + len(content)) + bytes(4) + b"\x02\x40\0\0" + kind + bytes(12) + b"acsp"
    return heading + bytes(28) + D50_TAG[8:] + bytes(48) + table + content


def test_grey_of_another_gamma(tmp_path: Path) -> None:
    levels = [0, 60, 128, 255]
    patches([(v,) for v in levels], "L").save(tmp_path / "grey.tiff", icc_profile=grey_profile(1.8))
    wanted = [np.repeat(encoded(np.array((v / 255) ** 1.8)), 3) for v in levels]
    assert wanted[2][0] > 140
    assert close(shown(open_image(tmp_path / "grey.tiff")), wanted)
    deep = np.full((8, 8), 128 * 257, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png", icc_profile=grey_profile(1.8))
    assert close(shown(open_image(tmp_path / "deep.png")), [wanted[2]])


def table_profile(space: bytes, corners: list[tuple[float, float, float]]) -> bytes:
    """A profile that is a table of CIE Lab at the corners of its cube, the last channel fastest."""
    inputs = len(corners).bit_length() - 1
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    table = bytes(round(v) for lab in corners for v in (lab[0] * 2.55, lab[1] + 128, lab[2] + 128))
    data = b"mft1" + bytes(4) + bytes([inputs, 3, 2, 0]) + identity + ramp * inputs + table + ramp * 3
    return icc_file(b"prtr" + space + b"Lab ", {b"wtpt": D50_TAG, b"A2B0": data})


def lab_to_srgb(lab: tuple[float, float, float]) -> np.ndarray:
    """CIE 1976, from D50 to D65 by the matrix of Bradford."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    adapt = [[0.9555766, -0.0230393, 0.0631636], [-0.0282895, 1.0099416, 0.0210077], [0.0122982, -0.0204830, 1.3299098]]
    return encoded(np.linalg.inv(to_xyz(SRGB)) @ np.array(adapt) @ xyz)


INK = (50.0, -20.0, -30.0)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_inks(suffix: str, tmp_path: Path) -> None:
    """A press whose cyan is a duller one than the formula 1 - C says."""
    corners = [(0.0, 0.0, 0.0)] * 16
    corners[0b0000], corners[0b1000], corners[0b0001] = (100.0, 0.0, 0.0), INK, (20.0, 0.0, 0.0)
    inks = patches([(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)], "CMYK")
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    inks.save(tmp_path / f"x.{suffix}", icc_profile=table_profile(b"CMYK", corners), **options)
    wanted = [np.full(3, 255.0), lab_to_srgb(INK), lab_to_srgb((20.0, 0.0, 0.0))]
    assert close(shown(open_image(tmp_path / f"x.{suffix}")), wanted, 3)
    assert np.abs(wanted[1] - (0, 255, 255)).max() > 50


def test_a_table_of_colours(tmp_path: Path) -> None:
    corners = [(0.0, 0.0, 0.0)] * 8
    corners[0b111], corners[0b100] = (100.0, 0.0, 0.0), (60.0, 40.0, 20.0)
    patches([(255, 0, 0), (255, 255, 255)]).save(tmp_path / "x.png", icc_profile=table_profile(b"RGB ", corners))
    wanted = [lab_to_srgb((60.0, 40.0, 20.0)), np.full(3, 255.0)]
    assert close(shown(open_image(tmp_path / "x.png")), wanted, 3)


BROKEN = {
    "no profile": b"not a profile at all",
    "cut": matrix_profile(P3, 2.2)[:200],
    "empty tags": icc_file(b"mntrRGB XYZ ", {}),
    "inks for light": table_profile(b"CMYK", [(50.0, 0.0, 0.0)] * 16),
    "greys for colours": grey_profile(1.8),
    "a link of devices": icc_file(b"linkLab Lab ", {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_profile_that_makes_no_sense_is_left_out_with_a_word(name: str, tmp_path: Path) -> None:
    patches(COLOURS).save(tmp_path / "x.png", icc_profile=BROKEN[name])
    with pytest.warns(UserWarning, match=r"x\.png has a colour profile that can't be used \(.+\): its numbers are"):
        opened = open_image(tmp_path / "x.png")
    assert shown(opened) == COLOURS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown(opened) == [
            tuple(c) for c in ((from_pil(opened) + 1) * 127.5).round().int()[:, 4, 4::8].T.tolist()
        ]


def test_without_the_colour_engine_there_is_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dalle_2.images import colour

    patches(COLOURS).save(tmp_path / "x.png", icc_profile=matrix_profile(P3, 2.3))
    colour._transform.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL.ImageCms", None)
    monkeypatch.delattr("PIL.ImageCms")
    with pytest.warns(UserWarning, match=r"x\.png has a colour profile that can't be used"):
        assert shown(open_image(tmp_path / "x.png")) == COLOURS


def test_a_camera_that_only_says_adobe_rgb(tmp_path: Path) -> None:
    """DCF: the interoperability index "R03", and no profile."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    patches(COLOURS).save(tmp_path / "_x.jpg", exif=exif, quality=100, subsampling=0)
    wanted = [in_srgb(colour, ADOBE, ADOBE_GAMMA) for colour in COLOURS]
    assert close(shown(open_image(tmp_path / "_x.jpg")), wanted, 4)


def test_pictures_in_memory_and_in_folders_are_converted_too(tmp_path: Path) -> None:
    profile, colour = matrix_profile(P3, 2.2), (230, 60, 50)
    wanted = in_srgb(colour, P3, 2.2)
    Image.new("RGB", (8, 8), colour).save(tmp_path / "x.png", icc_profile=profile)
    (tmp_path / "x.txt").write_text("a red square")
    with Image.open(tmp_path / "x.png") as lazy:
        pixel = ((from_pil(lazy) + 1) * 127.5)[:, 4, 4]
        assert close([tuple(pixel.tolist())], [wanted])
        assert lazy.info["icc_profile"] == profile  # the caller's picture stays as it is
    assert close([tuple(ImageFolder(tmp_path, 8)[0].image[4, 4].tolist())], [wanted])
    assert close([tuple(ImageFolder(tmp_path, 4)[0].image[2, 2].tolist())], [wanted])


def test_profiles_of_a_megabyte(tmp_path: Path) -> None:
    """More than Pillow unpacks by itself."""
    profile = matrix_profile(P3, 2.2)
    large = struct.pack(">I", len(profile) + 3_000_000) + profile[4:] + bytes(3_000_000)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (230, 60, 50)).save(buffer, "PNG", icc_profile=large)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(buffer.getvalue()))
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    assert close([open_image(tmp_path / "x.png").getpixel((4, 4))], [in_srgb((230, 60, 50), P3, 2.2)])
