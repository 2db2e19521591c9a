"""Words on pictures: which font has their signs, what stands for those that none has, and where lines break."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Looked for by name where the system keeps its fonts, as Pillow's own font knows little beyond ASCII: fonts of many
# alphabets first, then those for Chinese, Japanese and Korean, of Linux, macOS and Windows.
_NAMES = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "FreeSans.ttf", "Arial.ttf", "arial.ttf",
    "segoeui.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "unifont.otf",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "msyh.ttc", "simsun.ttc", "YuGothM.ttc",
    "malgun.ttf",
)  # fmt: skip

_NO_SIGN = "\uffff"  # never a character: drawn as the box that stands for what a font lacks
_UNKNOWN = "?"
_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))

# What no accent is taken from.
_PLAIN = str.maketrans({
    "–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"',
    "«": '"', "»": '"', "…": "...", "⁄": "/", "×": "x", "•": "*", "ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE",
    "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i",
})  # fmt: skip


def lacking(font: Font, text: str) -> list[str]:
    """The signs of a text that a font has not, each once."""
    box = bytes(font.getmask(_NO_SIGN))
    return [sign for sign in dict.fromkeys(text) if not sign.isspace() and bytes(font.getmask(sign)) == box]


def lettered(texts: Sequence[str], size: int) -> tuple[list[str], Font]:
    """The texts as they can be written, and the font of that size to write them in.

    Pillow's own font where it has all signs, else the system's that has most of them. A sign that it lacks is
    written without its accent or in plain letters (`é` as `e`, `…` as `...`), else as a question mark.
    """
    clean = [_clean(text) for text in texts]
    font = _font_for("".join(sorted(set("".join(clean)))), size)
    unknown = set(lacking(font, "".join(clean)))
    return ["".join(_replaced(sign, font) if sign in unknown else sign for sign in text) for text in clean], font


def wrapped(text: str, width: int, font: Font) -> str:
    """Breaks a text between words, and a longer word inside, so that each line fits `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.extend(_pieces(word, width, font))
    return "\n".join(lines)


def _pieces(word: str, width: int, font: Font) -> list[str]:
    """A word in pieces that fit, each of at least one sign."""
    pieces = [""]
    for sign in word:
        if pieces[-1] and font.getlength(pieces[-1] + sign) > width:
            pieces.append("")
        pieces[-1] += sign
    return pieces


def _clean(text: str) -> str:
    """One sign a letter with its accent where there is one, and none of those that only tell how others are drawn."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(sign for sign in composed if unicodedata.category(sign) != "Cf" and sign not in _SELECTORS)


@lru_cache(maxsize=64)
def _font_for(signs: str, size: int) -> Font:
    own = ImageFont.load_default(size)
    if not lacking(own, signs):
        return own
    fonts = [own, *(font for name in _NAMES if (font := _named(name, size)) is not None)]
    return min(fonts, key=lambda font: len(lacking(font, signs)))


@lru_cache(maxsize=256)
def _named(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ImportError):
        return None


def _replaced(sign: str, font: Font) -> str:
    if unicodedata.combining(sign):
        return ""
    for spelling in (sign.translate(_PLAIN), unicodedata.normalize("NFKD", sign)):
        plain = "".join(part for part in spelling if not unicodedata.combining(part)).translate(_PLAIN)
        if plain and not lacking(font, plain):
            return plain
    return _UNKNOWN
