"""Pictures in and out: values, shapes, whatever people call an image, sheets, what a file says of itself."""

import errno
import json
import struct
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_2 import images
from dalle_2.errors import DataError, UsageError
from dalle_2.images import from_pil, grid, open_image, read_metadata, save_image, to_pil, to_pils

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class TestTensors:
    def test_all_256_values_come_back(self) -> None:
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        image = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=-1))
        x = from_pil(image)
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (-1, 1)
        assert np.array_equal(np.asarray(to_pil(x)), np.asarray(image))

    def test_axes(self) -> None:
        x = torch.full((3, 2, 5), -1.0)
        x[0, 1, 4] = 1
        image = to_pil(x)
        assert image.size == (5, 2)
        assert image.getpixel((4, 1)) == RED
        assert torch.equal(from_pil(image), x)

    def test_clamps_and_rounds(self) -> None:
        x = torch.tensor([-7.0, -0.0001, 7.0]).reshape(3, 1, 1)
        assert to_pil(x).getpixel((0, 0)) == (0, 127, 255)

    def test_half_precision_and_gradients(self) -> None:
        x = torch.zeros(3, 2, 2, dtype=torch.bfloat16, requires_grad=True)
        assert to_pil(x).getpixel((0, 0)) == (128, 128, 128)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_refuses_what_is_not_finite(self, value: float) -> None:
        with pytest.raises(UsageError, match="not finite"):
            to_pil(torch.full((3, 2, 2), value))

    def test_batches(self) -> None:
        batch = torch.stack([from_pil(picture(4, 4, seed)) for seed in range(3)])
        assert [np.asarray(image).tolist() for image in to_pils(batch)] == [
            np.asarray(picture(4, 4, seed)).tolist() for seed in range(3)
        ]


class TestResize:
    def stripes(self) -> Image.Image:
        """Red, green and blue, each 20 x 20."""
        image = Image.new("RGB", (60, 20))
        for k, colour in enumerate((RED, GREEN, BLUE)):
            image.paste(colour, (20 * k, 0, 20 * k + 20, 20))
        return image

    @pytest.mark.parametrize(
        ("resize", "left", "centre", "top"),
        [("crop", GREEN, GREEN, GREEN), ("squash", RED, GREEN, GREEN), ("pad", RED, GREEN, (255, 255, 255))],
    )
    def test_what_stays_in_view(
        self, resize: images.Resize, left: tuple[int, ...], centre: tuple[int, ...], top: tuple[int, ...]
    ) -> None:
        image = to_pil(from_pil(self.stripes(), 20, resize))
        assert image.size == (20, 20)
        assert [image.getpixel(at) for at in ((1, 10), (10, 10), (10, 0))] == [left, centre, top]

    def test_is_antialiased(self) -> None:
        """A fine checkerboard shrinks to its mean; picking every eighth pixel would give black or white."""
        board = np.indices((64, 64)).sum(0) % 2 * 255
        image = Image.fromarray(np.repeat(board[..., None], 3, -1).astype(np.uint8))
        assert from_pil(image, 8).abs().max() < 0.05

    def test_enlarges(self) -> None:
        assert from_pil(picture(3, 5), 16).shape == (3, 16, 16)

    def test_refuses_no_size(self) -> None:
        with pytest.raises(UsageError, match="at least 1, got 0"):
            from_pil(picture(3, 3), 0)


class TestOpenImage:
    def test_transparency_shows_white(self, tmp_path: Path) -> None:
        Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
        Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "grey.png")
        half = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
        half.save(tmp_path / "half.png")
        assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
        assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (255, 255, 255)
        assert open_image(tmp_path / "half.png").getpixel((0, 0)) == (255, 127, 127)

    def test_transparent_palette(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *BLUE])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "palette.png", transparency=0)
        opened = open_image(tmp_path / "palette.png")
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), BLUE]

    def test_turned_by_exif(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (40, 20), BLUE)
        image.paste(RED, (0, 0, 20, 20))
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees, clockwise
        image.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
        opened = open_image(tmp_path / "turned.jpg")
        assert opened.size == (20, 40)
        top, bottom = opened.getpixel((10, 5)), opened.getpixel((10, 35))
        assert top[0] > 240
        assert bottom[2] > 240

    def test_cmyk(self, tmp_path: Path) -> None:
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
        r, g, b = open_image(tmp_path / "print.jpg").getpixel((4, 4))
        assert r > 240
        assert max(g, b) < 15

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        ramp = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
        Image.fromarray(ramp).save(tmp_path / "deep.png")
        opened = open_image(tmp_path / "deep.png")
        assert [opened.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]

    def test_floats(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "float.tiff")
        opened = open_image(tmp_path / "float.tiff")
        assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]

    def test_the_first_frame_of_several(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
        frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
        assert open_image(tmp_path / "moving.gif").getpixel((0, 0)) == RED

    def test_one_bit_and_grey(self, tmp_path: Path) -> None:
        Image.new("1", (2, 2), 1).save(tmp_path / "bit.png")
        Image.new("L", (2, 2), 77).save(tmp_path / "grey.png")
        assert open_image(tmp_path / "bit.png").getpixel((0, 0)) == (255, 255, 255)
        assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)

    def test_a_bomb_is_refused_by_its_heading(self, tmp_path: Path) -> None:
        heading = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 5_000, 8, 2, 0, 0, 0)
        end = b"\0\0\0\0IEND\xaeB`\x82"
        chunk = struct.pack(">I", 13) + heading + struct.pack(">I", zlib.crc32(heading))
        data = b"IDAT" + zlib.compress(b"")
        chunk += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + end)
        with (
            pytest.warns(Image.DecompressionBombWarning),
            pytest.raises(DataError, match=r"bomb\.png: 30000 x 5000"),
        ):
            open_image(tmp_path / "bomb.png")

    @pytest.mark.parametrize("name", ["notes.png", "empty.jpg", "script.eps", "folder", "none.png"])
    def test_names_what_it_cannot_read(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "notes.png").write_text("not a picture")
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "script.eps").write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
        )
        (tmp_path / "folder").mkdir()
        with pytest.raises(DataError) as caught:
            open_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    @settings(max_examples=60, deadline=None)
    @given(cut=st.integers(0, 1400), flip=st.integers(0, 1400), suffix=st.sampled_from(["png", "jpg", "gif"]))
    def test_a_broken_file_is_a_data_error_or_a_picture(
        self, tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, suffix: str
    ) -> None:
        path = tmp_path_factory.mktemp("broken") / f"x.{suffix}"
        picture(16, 16).save(path)
        data = bytearray(path.read_bytes())
        data[flip % len(data)] ^= 0xFF
        path.write_bytes(data[: max(1, len(data) - cut)])
        try:
            assert open_image(path).mode == "RGB"
        except DataError as error:
            assert str(path) in str(error)


class TestGrid:
    def test_places_pictures_in_rows(self) -> None:
        colours = [RED, GREEN, BLUE, (9, 9, 9), (99, 99, 99)]
        sheet = grid([Image.new("RGB", (32, 16), colour) for colour in colours], columns=2)
        assert sheet.size == (2 * 36, 3 * 20)
        found = [sheet.getpixel((18 + 36 * (k % 2), 10 + 20 * (k // 2))) for k in range(6)]
        assert found == [*colours, (255, 255, 255)]

    def test_marks_frame_and_labels_stand_below(self) -> None:
        images = [Image.new("RGB", (64, 64), BLUE)] * 2
        plain = grid(images, columns=2)
        marked = grid(images, columns=2, marks=[False, True])
        labelled = grid(images, columns=2, labels=["", "a red circle above a blue square"])
        assert marked.size == plain.size
        assert marked.getpixel((68, 30)) != marked.getpixel((0, 30)) == (255, 255, 255)
        assert labelled.height > plain.height
        ink = np.asarray(labelled)[68:].min(axis=(0, 2))
        assert ink[:68].min() == 255
        assert ink[68:].min() < 128

    def test_without_columns_it_is_nearly_square(self) -> None:
        assert grid([picture(32, 32)] * 5).size == (3 * 36, 2 * 36)
        assert grid([picture(32, 32)], columns=9).size == (36, 36)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"images": []}, "at least one picture"),
            ({"columns": 0}, "at least one column, got 0"),
            ({"labels": ["a"]}, "2 pictures need as many labels, got 1"),
            ({"marks": [True] * 3}, "2 pictures need as many marks, got 3"),
        ],
    )
    def test_refuses(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            grid(**{"images": [picture(4, 4)] * 2, **options})


PROMPTS = [
    "a red circle above a blue square",
    "ein roter Kreis – 赤い円 🟥",
    'quotes " and <tags> & \\ \n lines',
]


SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


class TestMetadata:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_comes_back(self, tmp_path: Path, suffix: str, prompt: str) -> None:
        values = {
            "prompt": prompt,
            "seed": 2**63,
            "steps": 20,
            "eta": 0.5,
            "guidance": None,
            "sizes": [64, 256],
        }
        save_image(picture(16, 16), tmp_path / f"x{suffix}", values)
        assert read_metadata(tmp_path / f"x{suffix}") == values

    def test_png_keeps_the_pixels(self, tmp_path: Path) -> None:
        save_image(picture(16, 16), tmp_path / "x.png", {})
        assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(picture(16, 16)))

    def test_jpeg_keeps_sharp_colours(self, tmp_path: Path) -> None:
        """Halved colour resolution would bleed far across this edge."""
        image = Image.new("RGB", (16, 16), BLUE)
        image.paste(RED, (0, 0, 7, 16))
        save_image(image, tmp_path / "x.jpg", {}, quality=100)
        difference = np.asarray(Image.open(tmp_path / "x.jpg"), dtype=int) - np.asarray(image)
        assert abs(difference).max() <= 6

    def test_other_tools_find_it(self, tmp_path: Path) -> None:
        save_image(picture(8, 8), tmp_path / "x.png", {"prompt": "a red circle", "steps": 20})
        save_image(picture(8, 8), tmp_path / "x.jpg", {"prompt": "a red circle"})
        with Image.open(tmp_path / "x.png") as png, Image.open(tmp_path / "x.jpg") as jpg:
            assert png.text["parameters"] == "a red circle\nsteps: 20"
            assert json.loads(png.text["dalle2"]) == {"prompt": "a red circle", "steps": 20}
            for image in (png, jpg):
                description = ElementTree.fromstring(image.info["xmp"])[0][0]
                assert description.attrib[SOURCE_TYPE].endswith("/trainedAlgorithmicMedia")

    def test_a_transparent_picture_can_become_a_jpeg(self, tmp_path: Path) -> None:
        save_image(Image.new("RGBA", (4, 4), RED), tmp_path / "x.jpg", {"seed": 1})
        assert read_metadata(tmp_path / "x.jpg") == {"seed": 1}

    def test_a_long_prompt_fits_both(self, tmp_path: Path) -> None:
        for name, prompt in (("a.jpg", "long " * 2000), ("b.jpg", "長" * 10_000), ("c.png", "長" * 10_000)):
            save_image(picture(4, 4), tmp_path / name, {"prompt": prompt})
            assert read_metadata(tmp_path / name) == {"prompt": prompt}

    def test_none_of_ours(self, tmp_path: Path) -> None:
        picture(4, 4).save(tmp_path / "x.png")
        picture(4, 4).save(tmp_path / "x.jpg")
        assert read_metadata(tmp_path / "x.png") is None
        assert read_metadata(tmp_path / "x.jpg") is None

    def test_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"x\.tiff: the suffix must be one of \.png, \.jpg, \.jpeg"):
            save_image(picture(4, 4), tmp_path / "x.tiff", {})
        with pytest.raises(UsageError, match="plain JSON"):
            save_image(picture(4, 4), tmp_path / "x.png", {"device": torch.device("cpu")})
        with pytest.raises(UsageError, match=r"more than a JPEG holds: use \.png"):
            save_image(picture(4, 4), tmp_path / "x.jpg", {"prompt": "x" * 70_000})
        with pytest.raises(DataError, match="there is no file"):
            read_metadata(tmp_path / "none.png")
        (tmp_path / "rubbish.png").write_text("rubbish")
        with pytest.raises(DataError, match=r"can't read .*rubbish\.png"):
            read_metadata(tmp_path / "rubbish.png")
        assert [path.name for path in tmp_path.iterdir()] == ["rubbish.png"]

    def test_a_full_disk_leaves_the_old_picture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_image(picture(4, 4), tmp_path / "x.png", {"seed": 1})

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match=r"x\.png"):
            save_image(picture(4, 4), tmp_path / "x.png", {"seed": 2})
        assert read_metadata(tmp_path / "x.png") == {"seed": 1}
