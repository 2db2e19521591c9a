"""What a mask paints, by every road: white, erased, or strokes on a transparent layer."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dalle_2.cli.main import main
from dalle_2.errors import UsageError
from dalle_2.images import layers
from dalle_2.inference.holes import holed, open_holed
from dalle_2.inference.mask_meaning import painted

SIZE = 32
QUARTER = (0, 0, 16, 16)


def picture() -> Image.Image:
    """Colours of all kinds; a third of them bright."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(4, 0).repeat(4, 1))


def quarter(inside: int, outside: int) -> Image.Image:
    channel = Image.new("L", (SIZE, SIZE), outside)
    channel.paste(inside, QUARTER)
    return channel


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    made = image.convert("RGBA")
    made.putalpha(alpha)
    return made


def erased() -> Image.Image:
    return with_alpha(picture(), quarter(0, 255))


def strokes(level: int = 255) -> Image.Image:
    """A quarter painted white on an empty layer."""
    return with_alpha(Image.new("L", (SIZE, SIZE), 255), quarter(level, 0))


def palette(colours: list[int], alphas: bytes, path: Path) -> Image.Image:
    """Colour 0 in the quarter, colour 1 elsewhere, as a PNG with a palette."""
    image = quarter(0, 1)
    made = Image.frombytes("P", image.size, image.tobytes())
    made.putpalette(colours)
    made.save(path, transparency=alphas)
    return Image.open(path)


BLACK, WHITE = Image.new("L", (SIZE, SIZE), 0), Image.new("L", (SIZE, SIZE), 255)
SPOT = WHITE.copy()
SPOT.putpixel((28, 28), 0)

# Each paints the quarter and nothing else.
AUTO: dict[str, tuple[Image.Image, str]] = {
    "white on black": (quarter(255, 0), ""),
    "one bit": (quarter(255, 0).convert("1"), ""),
    "16 bits": (Image.fromarray(np.asarray(quarter(255, 0)).astype(np.uint16) * 257), ""),
    "opaque alpha": (with_alpha(quarter(255, 0), WHITE), ""),
    "the same alpha everywhere": (with_alpha(quarter(255, 0), Image.new("L", (SIZE, SIZE), 200)), ""),
    "a trace of alpha": (with_alpha(quarter(255, 0), quarter(252, 255)), ""),
    "the picture erased": (erased(), "transparent"),
    "the picture erased, grey": (erased().convert("LA"), "transparent"),
    "the picture erased, premultiplied": (erased().convert("RGBa"), "transparent"),
    "a bright picture erased": (with_alpha(picture().point(lambda v: 128 + v // 2), quarter(0, 255)), "transparent"),
    "a white page with a spot, erased": (with_alpha(SPOT, quarter(0, 255)), "transparent"),
    "black erased": (with_alpha(BLACK, quarter(0, 255)), "transparent"),
    "black erased, white under it": (with_alpha(quarter(255, 0), quarter(0, 255)), "transparent"),
    "strokes": (strokes(), "white"),
    "strokes, grey": (strokes().convert("LA"), "white"),
    "strokes of a soft brush": (strokes(100), "white"),
    "strokes, black under the rest": (with_alpha(quarter(255, 0), quarter(255, 0)), "white"),
}  # fmt: skip


def hole_of(mask: Image.Image, means: str = "auto") -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return holed(picture(), mask, SIZE, means=means).hole[0].numpy()


def is_quarter(hole: np.ndarray) -> bool:
    wanted = np.zeros((SIZE, SIZE), bool)
    wanted[:16, :16] = True
    return np.array_equal(hole, wanted)


@pytest.mark.parametrize("name", AUTO)
def test_the_quarter_is_painted_in_memory(name: str) -> None:
    mask, meaning = AUTO[name]
    assert is_quarter(hole_of(mask))
    said = painted(layers(mask)).said
    assert said.startswith(f"painting the {meaning} 25 % of the mask") if meaning else said == ""


@pytest.mark.parametrize("name", [name for name in AUTO if "premultiplied" not in name])
def test_the_quarter_is_painted_from_a_file(name: str, tmp_path: Path) -> None:
    picture().save(tmp_path / "picture.png")
    AUTO[name][0].save(tmp_path / "mask.png")
    found = open_holed(tmp_path / "picture.png", tmp_path / "mask.png", SIZE)
    assert is_quarter(found.hole[0].numpy())
    assert (found.understood == "") == (AUTO[name][1] == "")
    assert np.array_equal(((found.picture + 1) * 127.5).round().permute(1, 2, 0).numpy(), np.asarray(picture()))


def test_palettes(tmp_path: Path) -> None:
    dark = palette([9, 9, 9, 40, 0, 0], b"\x00\xff", tmp_path / "erased.png")
    assert is_quarter(hole_of(dark))
    light = palette([255, 255, 255, 0, 0, 0], b"\xff\x00", tmp_path / "strokes.png")
    assert is_quarter(hole_of(light))
    key = quarter(255, 0)
    key.save(tmp_path / "key.png", transparency=0)  # black stands for nothing: white strokes
    assert is_quarter(hole_of(Image.open(tmp_path / "key.png")))


def test_a_turned_mask_from_a_file_is_turned_back(tmp_path: Path) -> None:
    """The camera's way of saying "turn me": both files say it, and the hole is where a viewer shows it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "picture.png", exif=exif)
    erased().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "mask.png", exif=exif)
    found = open_holed(tmp_path / "picture.png", tmp_path / "mask.png", SIZE)
    assert is_quarter(found.hole[0].numpy())
    with Image.open(tmp_path / "picture.png") as lazy, Image.open(tmp_path / "mask.png") as lazy_mask:
        assert is_quarter(holed(lazy, lazy_mask, SIZE, means="transparent").hole[0].numpy())


def test_soft_edges_are_cut_in_their_middle() -> None:
    """Ten pixels from opaque to nothing: half of them belong to the hole, whether erased or painted."""
    ramp = np.full((SIZE, SIZE), 255, np.uint8)
    ramp[:, :20] = 0
    ramp[:, 20:30] = np.linspace(12, 242, 10, dtype=np.uint8)
    alpha = Image.fromarray(ramp)
    columns = hole_of(with_alpha(picture(), alpha)).all(0)
    assert columns.tolist() == [True] * 25 + [False] * 7
    columns = hole_of(with_alpha(WHITE, alpha)).all(0)
    assert columns.tolist() == [False] * 25 + [True] * 7


def test_strokes_with_edges_blended_into_black_are_strokes() -> None:
    """As resizing without regard to alpha leaves them."""
    alpha = Image.new("L", (SIZE * 4, SIZE * 4), 0)
    ImageDraw.Draw(alpha).ellipse((20, 20, 60, 60), fill=255)
    alpha = alpha.resize((SIZE, SIZE), Image.Resampling.BOX)
    hole = hole_of(with_alpha(alpha, alpha))
    assert np.array_equal(hole, np.asarray(alpha) >= 128)


def test_a_meaning_can_be_given() -> None:
    page = with_alpha(WHITE, quarter(0, 255))  # a white page with a quarter erased looks like strokes round it
    assert is_quarter(~hole_of(page))
    assert is_quarter(hole_of(page, "transparent"))
    both = with_alpha(quarter(255, 0), Image.new("L", (SIZE, SIZE), 255))
    both.paste((0, 0, 0, 0), (24, 24, 32, 32))
    assert is_quarter(hole_of(both, "white"))
    assert hole_of(both, "transparent").sum() == 64
    assert is_quarter(hole_of(quarter(255, 0), "white"))


def test_python_says_what_it_understood_unless_it_was_told() -> None:
    with pytest.warns(UserWarning, match=r"^painting the transparent 25 % of the mask; means='transparent' or 'white'"):
        found = holed(picture(), erased(), SIZE)
    assert found.understood == "painting the transparent 25 % of the mask"
    with pytest.warns(UserWarning, match=r"^painting the white 25 % of the mask and keeping its transparent part; "):
        holed(picture(), strokes(), SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert holed(picture(), erased(), SIZE, means="transparent").understood
        assert holed(picture(), quarter(255, 0), SIZE).understood == ""
    with pytest.warns(UserWarning, match="white less than 1 % of"):
        holed(picture(), one_pixel(), SIZE)


def one_pixel() -> Image.Image:
    mask = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    mask.putpixel((3, 3), (255, 255, 255, 255))
    return mask


def test_a_picture_can_be_its_own_mask() -> None:
    """The Images API's way without a mask; colours beside the hole stay to the bit, at another size too."""
    found = holed(erased(), None, SIZE)
    assert is_quarter(found.hole[0].numpy())
    assert found.understood == "painting the transparent 25 % of the picture"
    kept = ~found.hole[0].numpy()
    pixels = ((found.picture + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[kept], np.asarray(picture())[kept])
    plain = Image.new("RGB", (64, 64), (10, 20, 30))
    half = holed(with_alpha(plain, quarter(0, 255).resize((64, 64), 0)), None, SIZE)
    shown = ((half.picture + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(shown[~half.hole[0].numpy()] - (10, 20, 30)).max() <= 1  # premultiplied and back, rounded twice
    soft = with_alpha(plain, Image.new("L", (64, 64), 200))
    soft.paste((0, 0, 0, 0), (0, 0, 8, 8))
    thin = holed(soft, None, 64)
    assert ((thin.picture[:, 40, 40] + 1) * 127.5).round().tolist() == [10, 20, 30]  # not mixed with white


def test_masks_that_paint_nothing_or_all_are_refused() -> None:
    nothing = with_alpha(BLACK, Image.new("L", (SIZE, SIZE), 0))
    with pytest.raises(UsageError, match="the mask hides the whole picture"):
        hole_of(nothing)
    with pytest.raises(UsageError, match="the mask hides nothing: paint white, or erase"):
        hole_of(with_alpha(picture(), quarter(153, 255)))  # half erased is not erased
    with pytest.raises(UsageError, match=r"no transparent part: erase what is to be painted, or let it mean white$"):
        hole_of(quarter(255, 0), "transparent")
    with pytest.raises(UsageError, match="means auto, transparent or white, not 'black'"):
        hole_of(quarter(255, 0), "black")
    with pytest.raises(UsageError, match="the picture has no transparent part and no mask was given"):
        holed(picture(), None, SIZE)
    with pytest.raises(UsageError, match=r"without a mask the transparent part .*: give a mask that means white"):
        holed(erased(), None, SIZE, means="white")
    with pytest.raises(UsageError, match="16 x 16 pixels and the picture 32 x 32"):
        hole_of(erased().resize((16, 16)))


@pytest.fixture
def run(micro_pipeline: Path, workdir: Path) -> Callable[..., int]:
    picture().save("picture.png")
    erased().save("erased.png")
    strokes().save("strokes.png")
    quarter(255, 0).save("plain.png")

    def call(*arguments: str) -> int:
        words = ["inpaint", *arguments, "--candidates", "1", "--steps", "2", "--seed", "1", "--device", "cpu"]
        return main([*words, "--pipeline", str(micro_pipeline)])

    return call


SETTLES = "; --mask-means transparent or white settles it"
SAID = [
    (["picture.png", "a circle", "--mask", "plain.png"], None),
    (["picture.png", "a circle", "--mask", "erased.png"], f"painting the transparent 25 % of the mask{SETTLES}"),
    (
        ["picture.png", "a circle", "--mask", "strokes.png"],
        f"painting the white 25 % of the mask and keeping its transparent part{SETTLES}",
    ),
    (
        ["picture.png", "a circle", "--mask", "erased.png", "--mask-means", "transparent"],
        "painting the transparent 25 % of the mask",
    ),
    (["erased.png", "a circle"], "painting the transparent 25 % of the picture"),
]


@pytest.mark.parametrize(("words", "said"), SAID, ids=lambda value: None)
def test_the_command_paints_the_quarter_and_says_so(
    run: Callable[..., int], words: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("painting")]
    assert lines == ([said] if said else [])
    (made,) = Path("generations").glob("*.png")
    changed = (np.asarray(Image.open(made)) != np.asarray(picture())).any(-1)
    assert changed[:16, :16].mean() > 0.9
    assert not changed[16:].any()
    assert not changed[:, 16:].any()


def test_the_command_keeps_quiet_when_told(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("picture.png", "a circle", "--mask", "erased.png", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert run("picture.png", "a circle", "--mask", "erased.png", "--mask-means", "black") == 2
    assert "--mask-means" in capsys.readouterr().err
