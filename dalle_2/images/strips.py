"""Large pictures strip by strip, so that only one copy of all pixels is in memory."""

from collections.abc import Callable, Iterator

from PIL import Image

_PIXELS = 2**21  # of a strip; a power of two, as its rows are a multiple of what they are reduced by


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, copy of the rows) from top to bottom; all but the last have an even number of rows."""
    rows = max(2, _PIXELS // max(1, image.width) // 2 * 2)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def by_strips(image: Image.Image, change: Callable[[Image.Image], Image.Image], factor: int = 1) -> Image.Image:
    """The picture whose strips were changed; each becomes `factor` (1 or 2) times smaller."""
    size = (-(-image.width // factor), -(-image.height // factor))
    made: Image.Image | None = None
    for top, strip in strips(image):
        changed = change(strip)
        made = made or Image.new(changed.mode, size)
        made.paste(changed, (0, top // factor))
    if made is None:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels holds nothing")
    return made
