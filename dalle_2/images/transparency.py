"""The colour that stands for "nothing here" in pictures without an alpha channel (tRNS of a PNG)."""

from PIL import Image

# A PNG states the colour in its own depth, and Pillow leaves it so when it brings pixels to 8 bits.
_GREY = {"L;2": 85, "L;4": 17}
_DEEP = "RGB;16B"


def scale_key(image: Image.Image) -> None:
    """Brings that colour to the depth of the pixels, if the picture isn't loaded yet, and then loads it."""
    depth = _depth(image)
    image.load()
    key = image.info.get("transparency")
    if depth in _GREY and isinstance(key, int):
        image.info["transparency"] = key * _GREY[depth]
    elif depth == _DEEP and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _depth(image: Image.Image) -> object:
    """How pixels lie in the file, as its reader says; None for a picture that is in memory."""
    tiles = getattr(image, "tile", None)
    return tiles[0][3] if tiles else None
