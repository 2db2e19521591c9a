"""`dalle2 upscale` with two upsamplers in a row: which sizes there are, whole pictures, tiles, and what is refused."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dalle_2
from dalle_2 import DALLe2, Upsampler
from dalle_2.cli.main import main
from dalle_2.errors import UsageError
from dalle_2.images import from_pil, to_pil
from dalle_2.inference import upscale as module
from dalle_2.inference.generate import generate
from dalle_2.inference.generation import GenerationSettings
from dalle_2.inference.upscale import UpscaleSettings, batches, enlargement, upscaled
from dalle_2.metadata import read_metadata
from dalle_2.models.upsampler import UpsamplerConfig


@pytest.fixture(scope="module")
def two(micro_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro pipeline, 16 px and then 32, with an upsampler from 32 to 64 px that knows noise levels."""
    pipeline = dalle_2.load(micro_pipeline, device="cpu")
    (first,) = pipeline.upsamplers
    larger = {"image_size": 64, "low_res_size": 32, "noise_levels": 100, "noise_level": 10}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        second = Upsampler.from_config(UpsamplerConfig.model_validate(first.config.model_dump() | larger))
        for parameter in second.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    pipeline.upsamplers = [first, second]
    return dalle_2.save(pipeline, tmp_path_factory.mktemp("pipelines") / "two")


@pytest.fixture
def pipeline(two: Path) -> DALLe2:
    return dalle_2.load(two, device="cpu")


@pytest.fixture
def run(two: Path, workdir: Path) -> Callable[..., int]:
    def call(*arguments: str, command: str = "upscale") -> int:
        return main([command, "--pipeline", str(two), "--device", "cpu", "--seed", "3", *arguments])

    return call


def picture(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def made() -> dict[str, tuple[int, int]]:
    """The pictures in ./generations and their sizes."""
    return {path.name: Image.open(path).size for path in Path("generations").iterdir()}


def nothing_was_written() -> bool:
    return not Path("generations").exists()


# Squares


def test_a_picture_enters_as_late_as_its_size_allows(pipeline: DALLe2) -> None:
    def way(width: int, height: int, size: int | None = None) -> tuple[tuple[str, ...], int, int]:
        found = enlargement(pipeline, Image.new("RGB", (width, height)), UpscaleSettings(size=size))
        return found.stages, found.input[0], found.output[0]

    assert way(5, 9) == way(31, 90) == (("upsampler-32", "upsampler-64"), 16, 64)
    assert way(32, 32) == way(40, 1000) == (("upsampler-64",), 32, 64)
    assert way(500, 500, 32) == way(9, 9, 32) == (("upsampler-32",), 16, 32)
    assert way(20, 20, 64) == (("upsampler-32", "upsampler-64"), 16, 64)


def test_both_upsamplers_run_in_a_row(run: Callable[..., int], pipeline: DALLe2) -> None:
    picture(20, 16).save("small.png")
    picture(50, 40).save("large.png")
    assert run("small.png", "large.png") == 0
    assert made() == {"small-64px.png": (64, 64), "large-64px.png": (64, 64)}
    small, large = (read_metadata(f"generations/{name}-64px.png") or {} for name in ("small", "large"))
    assert (small["steps"], small["input"], small["seed"]) == ({"upsampler-32": 2, "upsampler-64": 2}, "16x16", 3)
    assert (large["steps"], large["input"], large["seed"]) == ({"upsampler-64": 2}, "32x32", 4)
    x = from_pil(picture(50, 40), 32)[None]
    z = pipeline._encode_images([picture(50, 40)])
    expected = to_pil(pipeline.upscale(x, z, seeds=[4], upsamplers=["upsampler-64"])[0])
    assert Image.open("generations/large-64px.png").tobytes() == expected.tobytes()


def test_a_size_may_be_chosen(run: Callable[..., int]) -> None:
    picture(50, 40).save("a.png")
    assert run("a.png", "--size", "32", "--format", "jpg") == 0
    assert made() == {"a-32px.jpg": (32, 32)}


def test_pictures_that_go_one_way_go_together(pipeline: DALLe2) -> None:
    images = [picture(side, side) for side in (8, 9, 40, 41, 42, 8)]
    ways = [enlargement(pipeline, image, UpscaleSettings()) for image in images]
    assert list(batches(ways, 2)) == [[0, 1], [2, 3], [4], [5]]
    assert [one.seed for one in upscaled(pipeline, images, 7)] == [7, 8, 9, 10, 11, 12]


# Whole pictures

WHOLE = [
    ("plain.png", lambda path: picture(20, 10).save(path), (20, 10)),
    ("tall.png", lambda path: picture(3, 31).save(path), (3, 31)),
    ("dot.png", lambda path: picture(1, 1).save(path), (1, 1)),
    ("alpha.png", lambda path: picture(12, 20).convert("RGBA").save(path), (12, 20)),
    ("cmyk.jpg", lambda path: picture(21, 18).convert("CMYK").save(path), (21, 18)),
    ("deep.png", lambda path: Image.fromarray(np.full((9, 14), 40_000, np.uint16)).save(path), (14, 9)),
    ("palette.gif", lambda path: picture(17, 23).quantize(8).save(path), (17, 23)),
    ("grey.jpg", lambda path: picture(16, 11).convert("L").save(path), (16, 11)),
]


def turned(path: str) -> None:
    """A picture whose EXIF says that it was taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(20, 12).save(path, exif=exif)


@pytest.mark.parametrize(("name", "write", "size"), [*WHOLE, ("turned.jpg", turned, (12, 20))])
def test_any_picture_is_enlarged_whole(
    name: str, write: Any, size: tuple[int, int], run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write(name)
    assert run(name, "--whole") == 0
    width, height = 2 * size[0], 2 * size[1]
    sides = str(width) if width == height else f"{width}x{height}"
    assert made() == {f"{Path(name).stem}-{sides}px.png": (width, height)}
    assert "cropped" not in capsys.readouterr().err


def test_a_whole_picture_resembles_what_came(run: Callable[..., int]) -> None:
    """Its own colours where they were, upright and complete."""
    turned("a.jpg")
    assert run("a.jpg", "--whole") == 0
    small = np.asarray(Image.open("generations/a-24x40px.png").resize((12, 20), Image.Resampling.BOX), np.float32)
    upright = np.asarray(picture(20, 12).transpose(Image.Transpose.ROTATE_270), np.float32)
    wrong = upright[::-1]
    assert np.abs(small - upright).mean() < np.abs(small - wrong).mean() / 2


def test_whole_pictures_enter_by_their_shorter_side_and_may_go_on(run: Callable[..., int], pipeline: DALLe2) -> None:
    picture(20, 10).save("small.png")
    assert run("small.png", "--whole", "--size", "80", "--out", "generations/") == 0
    assert made() == {"small-80x40px.png": (80, 40)}
    for size in (None, 80):
        settings = UpscaleSettings(whole=True, size=size)
        assert enlargement(pipeline, picture(40, 33), settings).stages == ("upsampler-64",)


def test_what_is_kept_whole_equals_the_square_that_it_is(pipeline: DALLe2) -> None:
    square, whole = (
        next(upscaled(pipeline, [picture(16, 16)], 5, UpscaleSettings(size=32, whole=whole))) for whole in (False, True)
    )
    assert square.image.tobytes() == whole.image.tobytes()


# Tiles and levels


def test_tiles_are_written_down_and_used(run: Callable[..., int], pipeline: DALLe2) -> None:
    picture(48, 40).save("a.png")
    assert run("a.png", "--whole", "--tile", "32", "--overlap", "8", "--noise-level", "0") == 0
    metadata = read_metadata("generations/a-96x80px.png") or {}
    assert metadata["tile"] == {"upsampler-64": 32}
    assert metadata["overlap"] == {"upsampler-64": 8}
    assert metadata["noise_level"] == {"upsampler-64": 0}
    settings = UpscaleSettings(whole=True, tile=32, overlap=8, noise_level=0)
    cut, uncut = (
        next(upscaled(pipeline, [picture(48, 40)], 3, chosen)).image
        for chosen in (settings, UpscaleSettings(whole=True, tile=96, noise_level=0))
    )
    assert Image.open("generations/a-96x80px.png").tobytes() == cut.tobytes()
    assert cut.tobytes() != uncut.tobytes()


def test_only_an_upsampler_with_levels_is_said_to_have_one(pipeline: DALLe2) -> None:
    image = picture(16, 16)
    plain = next(upscaled(pipeline, [image], 5)).metadata
    assert plain["noise_level"] == {"upsampler-64": 10}
    assert "tile" not in plain
    assert "noise_level" not in next(upscaled(pipeline, [image], 5, UpscaleSettings(size=32))).metadata


def test_generated_pictures_may_have_any_stages_size_and_be_made_in_tiles(
    run: Callable[..., int], pipeline: DALLe2
) -> None:
    assert run("a red circle", "--size", "32", "--tile", "16", "--overlap", "4", command="generate") == 0
    (name,) = made()
    assert made() == {name: (32, 32)}
    metadata = read_metadata(f"generations/{name}") or {}
    assert metadata["tile"] == {"upsampler-32": 16}
    assert metadata["steps"].keys() == {"prior", "decoder", "upsampler-32"}
    settings = GenerationSettings(size=32, tile=16, overlap=4)
    (image,) = generate(["a red circle"], pipeline, seed=3, settings=settings)
    assert Image.open(f"generations/{name}").tobytes() == image.tobytes()
    assert generate(["a red circle"], pipeline, seed=3, settings=GenerationSettings(size=16))[0].size == (16, 16)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "48"], "pipeline two enlarges pictures to 32 or 64 px, not to 48: choose one of these sizes"),
        (["--size", "0"], "--size"),
        (["--whole", "--size", "64"],
         "a whole picture of 20 x 10 px becomes 40 or 80 px on its longer side with pipeline two, not 64: choose one"),
        (["--tile", "18"], "a tile must be a multiple of 4 px here, got 18: say 16 or 20"),
        (["--tile", "16", "--overlap", "16"], "tiles of 16 px may overlap by 0 to 12 px here, got 16"),
        (["--noise-level", "101"], "noise_level must be a whole number from 0 to 100 for this upsampler, got 101"),
        (["--steps", "2000"], "steps must be a whole number from 1 to 1000 for the upsampler-32, got 2000"),
        (["--out", "a.png"], "a.png names a file"),
    ],
)  # fmt: skip
def test_what_can_not_be_made_is_one_sentence_and_no_file(
    arguments: list[str], words: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    picture(20, 10).save("a.png")
    assert run("a.png", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
    assert nothing_was_written()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "48"], "pipeline two makes pictures of 16 or 32 or 64 px, not of 48: choose one of these sizes"),
        (["--tile", "18"], "a tile must be a multiple of 4 px here, got 18"),
    ],
)
def test_generate_refuses_the_same(
    arguments: list[str], words: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a red circle", *arguments, command="generate") == 2
    assert words in capsys.readouterr().err
    assert nothing_was_written()


def test_a_damaged_picture_among_others_stops_them_all(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    picture(20, 10).save("good.png")
    with io.BytesIO() as file:
        Image.effect_noise((64, 64), 50).save(file, format="JPEG")
        Path("cut.jpg").write_bytes(file.getvalue()[: file.tell() // 2])
    assert run("good.png", "cut.jpg", "--whole") == 1
    assert "cut.jpg" in capsys.readouterr().err
    assert nothing_was_written()


def test_a_picture_that_would_become_too_large_is_refused(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 799)
    picture(20, 10).save("a.png")
    assert run("a.png", "--whole") == 2
    assert "a whole picture of 20 x 10 px would become 40 x 20, more than 799 pixels: shrink it first" in (
        capsys.readouterr().err
    )
    assert nothing_was_written()


def test_an_upsampler_that_is_not_there_is_refused(pipeline: DALLe2) -> None:
    with pytest.raises(UsageError, match="no upsampler 'upsampler-9': it has upsampler-32, upsampler-64"):
        pipeline.upscale(torch.zeros(1, 3, 16, 16), upsamplers=["upsampler-9"])
