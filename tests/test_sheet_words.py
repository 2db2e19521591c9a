"""Labels under pictures: no boxes in place of letters, and nothing beyond the picture's edge."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dalle_2.evaluation.typographic import labelled
from dalle_2.images import grid, lettering
from dalle_2.images.lettering import lacking, lettered, wrapped

WIDTH = 128
# A prompt of many alphabets' worth of trouble, and how it reads in plain letters.
SPELT = {
    "café naïf": "cafe naif", "cafe\u0301": "cafe", "a ring – blue": "a ring - blue",
    "Straße, smørrebrød, Łódź": "Strasse, smorrebrod, Lodz", "5 × 5 – ½": "5 x 5 - 1/2", "一个圆": "???",
    "a ☃\ufe0f here": "a ? here", "żero\u200bwidth": "zerowidth", "fullwidth Ａ": "fullwidth A",
}  # fmt: skip


@pytest.fixture
def afresh() -> Iterator[None]:
    """No font that another test chose."""
    lettering._font_for.cache_clear()
    yield
    lettering._font_for.cache_clear()


@pytest.fixture
def no_fonts(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any font, as in a bare container."""
    monkeypatch.setattr(lettering, "_NAMES", ())


@pytest.fixture
def one_font(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_NAMES", ("no such font.ttf", "DejaVuSans.ttf"))


def ink(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) < 200


def label(text: str, width: int = WIDTH) -> Image.Image:
    return grid([Image.new("RGB", (width, 16), "white")], labels=[text])


def drawn(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> np.ndarray:
    image = Image.new("L", (400, 60), 255)
    ImageDraw.Draw(image).text((4, 4), text, fill=0, font=font)
    return np.asarray(image)


@pytest.mark.parametrize("text", SPELT)
def test_without_a_font_letters_are_plain(no_fonts: None, text: str) -> None:
    assert lacking(ImageFont.load_default(12), text)  # or there would be nothing to do
    (found,), font = lettered([text], 12)
    assert found == SPELT[text]
    assert lacking(font, found) == []
    assert np.array_equal(ink(label(text)), ink(label(SPELT[text])))


def test_plain_english_is_written_as_ever() -> None:
    texts = ["a red circle above a blue square", "~!@#$%^&*()"]
    found, font = lettered(texts, 12)
    assert found == texts
    assert np.array_equal(drawn(texts[0], font), drawn(texts[0], ImageFont.load_default(12)))


def test_a_font_of_the_system_is_found_and_used(one_font: None) -> None:
    try:
        system = ImageFont.truetype("DejaVuSans.ttf", 12)
    except OSError:
        pytest.skip("this machine has no DejaVu Sans")
    texts = ["café naïf – Жук", "一 é"]
    found, font = lettered(texts, 12)
    assert found == ["café naïf – Жук", "? é"]
    assert np.array_equal(drawn(found[0], font), drawn(texts[0], system))
    assert not np.array_equal(drawn("é", font), drawn("\uffff", font))


def test_the_font_that_has_most_is_taken(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three fonts, told apart by their sizes, of which the second knows one sign more than the third."""
    own, second, third = (ImageFont.load_default(size) for size in (9, 10, 11))
    knows = {9: "abc", 10: "abcéï", 11: "abcé"}
    monkeypatch.setattr(lettering, "_NAMES", ("third", "second"))
    monkeypatch.setattr(lettering, "_named", lambda name, size: {"second": second, "third": third}[name])
    monkeypatch.setattr(lettering.ImageFont, "load_default", lambda size: own)
    monkeypatch.setattr(lettering, "lacking", lambda font, text: [s for s in text if s not in knows[font.size]])
    assert [lettering._font_for(signs, 9) for signs in ("abcéï中", "abcé中", "abc")] == [second, third, own]


LONG = ["x" * 200, "https://example.org/a/very/long/path/that/goes/on/and/on.png", "一" * 60, "a " + "W" * 90, "é" * 90]


@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("width", [32, 128, 256])
def test_long_words_stay_in_their_cell(text: str, width: int) -> None:
    sheet = ink(label(text, width))
    gap = max(2, width // 32)
    assert sheet.any()
    assert not sheet[:, gap + width :].any()
    two = grid([Image.new("RGB", (width, 16), "white")] * 2, columns=2, labels=[text, ""])
    assert not ink(two)[:, gap + width :].any()
    assert not sheet[-1].any() or sheet.shape[0] > 16 + 2 * gap  # and none is cut off below


def test_nothing_of_a_word_is_lost_where_it_breaks() -> None:
    font = ImageFont.load_default(12)
    text = "a " + "".join(chr(ord("a") + k % 26) for k in range(100)) + " end"
    lines = wrapped(text, 100, font).split("\n")
    assert "".join("".join(lines).split()) == text.replace(" ", "")
    assert all(font.getlength(line) <= 100 for line in lines)
    assert max(map(len, lines)) > 5
    assert wrapped("a red circle", 1000, font) == "a red circle"
    assert wrapped("", 100, font) == ""


def test_a_probed_picture_is_flattened_and_stays_as_it_was() -> None:
    given = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    made = labelled(given, "x")
    assert made.getpixel((0, 0)) == (255, 255, 255)
    plain = Image.new("RGB", (64, 64), (9, 9, 9))
    labelled(plain, "x")
    assert plain.getcolors() == [(64 * 64, (9, 9, 9))]
