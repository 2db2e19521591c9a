"""Reads a Shapes picture back into its scene, with geometry and no learning.

The background is the colour of the border; what differs from it falls into connected regions; each
region's colour is the palette's nearest, and its shape the template that overlaps it best once both have
the same area and centroid. Area and centroid survive blur and noise, so no search is needed. Whatever
fits badly is unreadable, never guessed.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dalle_2.data.render import coverage
from dalle_2.data.scenes import BACKGROUNDS, COLOURS, RADII, SHAPES, Rgb, Scene, SceneObject
from dalle_2.errors import UsageError
from dalle_2.evaluation.components import label

WORKING_SIZE = 128  # larger pictures are averaged down to about this size, which also calms their noise
CONTRAST = 45.0  # least RGB distance (of 441) between a region and the background
MAX_BORDER_STRAY = 0.03  # part of the border that may differ from the background
MAX_UNEVENNESS = 15.0  # mean RGB distance of background pixels from the background's colour
SPECK = 0.0012  # regions below this part of the picture are dropped
MAX_SPECKS = 0.004  # unless they add up to more than this
MAX_RESIDUE = 22.0  # mean RGB distance of a region from the blend of its own colour and the background
MAX_COLOUR_ERROR = 20.0  # CIE76 distance to the palette
MIN_COLOUR_LEAD = 1.4  # how much farther the second nearest palette colour must be
MIN_OVERLAP = 0.9  # intersection over union with the best template
MIN_SHAPE_LEAD = 0.05  # by which the best template must beat the second
RADIUS_RANGE = (0.075, 0.23)

Picture = Float[np.ndarray, "h w 3"]
Colour = Float[np.ndarray, "3"]
Mask = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class Unreadable:
    """A picture that shows no scene for certain, and why: "kind of fault", or "kind of fault: what was measured"."""

    reason: str


class _Refusal(Exception):
    """Carries the reason up to `parse`."""


def parse(image: UInt8[np.ndarray, "h w 3"]) -> Scene | Unreadable:
    """The scene a square picture shows, made for 256 px and usable from 64 px on.

    Raises UsageError unless the picture is square and at least 32 px a side.
    """
    if image.shape[0] != image.shape[1] or image.shape[0] < 32:
        raise UsageError(
            f"expected a square picture of at least 32 px, got {image.shape[1]} x {image.shape[0]}"
        )
    try:
        return _read(_averaged(image))
    except _Refusal as refusal:
        return Unreadable(str(refusal))


def _averaged(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "side side 3"]:
    factor = max(image.shape[0] // WORKING_SIZE, 1)
    side = image.shape[0] // factor
    if factor == 1:
        return image.astype(np.float32)
    # Strided sums: numpy's mean over inner axes is many times slower.
    total = np.zeros((side, side, 3), np.float32)
    for i, j in product(range(factor), repeat=2):
        total += image[i : side * factor : factor, j : side * factor : factor]
    return total / np.float32(factor * factor)


def _read(picture: Picture) -> Scene:
    ground = _border_colour(picture)
    background = _name(ground, BACKGROUNDS, "background")
    difference = picture - ground
    distance = np.sqrt(np.einsum("hwc,hwc->hw", difference, difference))
    regions = _regions(distance)
    return Scene(background, tuple(_read_object(picture, ground, regions, index) for index in _kept(regions)))


def _border_colour(picture: Picture) -> Colour:
    width = max(picture.shape[0] // 64, 1)
    sides = (picture[:width], picture[-width:], picture[:, :width], picture[:, -width:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    ground = np.median(border, axis=0)
    stray = float((np.linalg.norm(border - ground, axis=1) > CONTRAST).mean())
    if stray > MAX_BORDER_STRAY:
        raise _Refusal(f"the border is not of one colour: {stray:.0%} of it differ")
    return ground


def _regions(distance: Mask) -> Int[np.ndarray, "h w"]:
    mask = distance > CONTRAST
    if mask.mean() > 0.6:
        raise _Refusal("most of the picture differs from its border")
    unevenness = float(distance[~mask].mean())
    if unevenness > MAX_UNEVENNESS:
        raise _Refusal(f"the background is uneven: by {unevenness:.0f} levels")
    regions = label(mask)
    if regions is None:
        raise _Refusal("noise")
    return regions


def _kept(regions: Int[np.ndarray, "h w"]) -> list[int]:
    """The numbers of the regions that are large enough to be objects, at most three."""
    parts = np.bincount(regions.ravel())[1:] / regions.size
    specks = float(parts[parts < SPECK].sum())
    if specks > MAX_SPECKS:
        raise _Refusal(f"specks cover too much of the picture: {specks:.1%}")
    kept = (np.flatnonzero(parts >= SPECK) + 1).tolist()
    if not 1 <= len(kept) <= 3:
        raise _Refusal(f"other than one to three objects: {len(kept)} objects")
    return kept


def _read_object(
    picture: Picture, ground: Colour, regions: Int[np.ndarray, "h w"], index: int
) -> SceneObject:
    rows, columns = _box(regions == index)
    patch, numbers = picture[rows, columns], regions[rows, columns]
    own = numbers == index
    colour = _core_colour(patch[own], ground)
    cover, residue = _coverage_and_residue(patch, ground, colour)
    if residue[own].mean() > MAX_RESIDUE:
        raise _Refusal("a region is not of one colour")
    cover[(numbers != 0) & ~own] = 0
    fit = _best_fit(cover)
    side = picture.shape[0]
    radius = fit.radius / side
    if not RADIUS_RANGE[0] <= radius <= RADIUS_RANGE[1]:
        raise _Refusal(f"an object is too small or too large: a {fit.shape} of radius {radius:.2f} of the picture")
    return SceneObject(
        colour=_name(colour, COLOURS, "colour"),
        shape=fit.shape,
        size=_size(radius),
        x=(columns.start + fit.x) / side,
        y=(rows.start + fit.y) / side,
        radius=radius,
    )


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """The rows and columns of a region's box, with room around it for soft edges."""
    spans = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis=axis))
        spans.append(slice(max(int(places[0]) - 3, 0), min(int(places[-1]) + 4, mask.shape[0])))
    return spans[0], spans[1]


def _core_colour(pixels: Float[np.ndarray, "n 3"], ground: Colour) -> Colour:
    """The median of the pixels that differ most from the background, which are no edge pixels."""
    distance = np.linalg.norm(pixels - ground, axis=1)
    return np.median(pixels[distance >= 0.85 * np.quantile(distance, 0.9)], axis=0)


def _coverage_and_residue(patch: Picture, ground: Colour, colour: Colour) -> tuple[Mask, Mask]:
    """How much of each pixel the object covers, and how far the pixel's colour lies from that blend."""
    contrast = colour - ground
    difference = patch - ground
    cover = np.clip(difference @ (contrast / (contrast @ contrast)), 0, 1)
    residue = np.linalg.norm(difference - cover[:, :, None] * contrast, axis=2)
    cover[cover < 0.1] = 0  # the noise of the background would otherwise count as area
    return cover, residue


class _Fit(NamedTuple):
    """A template laid over a region; lengths in pixels of the patch."""

    overlap: float
    shape: str
    x: float
    y: float
    radius: float


def _best_fit(cover: Mask) -> _Fit:
    area = float(cover.sum())
    places = np.arange(max(cover.shape), dtype=np.float32) + 0.5
    x = float(cover.sum(0) @ places[: cover.shape[1]]) / area
    y = float(cover.sum(1) @ places[: cover.shape[0]]) / area
    second, best = sorted(_fit(shape, cover, area, x, y) for shape in SHAPES)[-2:]
    if best.overlap < MIN_OVERLAP:
        raise _Refusal(
            f"no shape fits a region: the best is a {best.shape} with an overlap of {best.overlap:.2f}"
        )
    if best.overlap - second.overlap < MIN_SHAPE_LEAD:
        raise _Refusal(f"a region may be of two shapes: a {best.shape} or a {second.shape}")
    return best


def _fit(shape: str, cover: Mask, area: float, x: float, y: float) -> _Fit:
    """The template of the region's area and centroid, and its overlap with the region."""
    moments = _moments(shape)
    radius = (area / moments.area) ** 0.5
    x, y = x - radius * moments.x, y - radius * moments.y
    columns = np.arange(cover.shape[1], dtype=np.float32) + np.float32(0.5 - x)
    rows = np.arange(cover.shape[0], dtype=np.float32) + np.float32(0.5 - y)
    template = coverage(shape, columns, rows, radius)
    return _Fit(_overlap(cover, template), shape, x, y, radius)


def _overlap(a: Mask, b: Mask) -> float:
    """Intersection over union, with edges made harder so that blur costs little of it."""
    a, b = np.clip(a * 2 - 0.5, 0, 1), np.clip(b * 2 - 0.5, 0, 1)
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


class _Moments(NamedTuple):
    """Area and centroid of a shape of radius 1."""

    area: float
    x: float
    y: float


@cache
def _moments(shape: str) -> _Moments:
    radius = 200
    places = np.arange(-1.25 * radius, 1.25 * radius, dtype=np.float32) + np.float32(0.5)
    template = coverage(shape, places, places, float(radius)).astype(np.float64)
    area = template.sum()
    x, y = (template.sum(axis) @ places / area / radius for axis in (0, 1))
    return _Moments(float(area) / radius**2, float(x), float(y))


def _size(radius: float) -> str:
    """The size whose range of radii is nearest."""
    return min(RADII, key=lambda size: max(RADII[size][0] - radius, radius - RADII[size][1]))


def _name(colour: Colour, palette: dict[str, Rgb], what: str) -> str:
    """The name of the nearest palette colour, refused where it is far or another is nearly as near."""
    known, given = (_lab(np.array(colours, np.float64)) for colours in (list(palette.values()), [colour]))
    errors = np.linalg.norm(known - given, axis=1)
    nearest, second = np.argsort(errors)[:2]
    if errors[nearest] > MAX_COLOUR_ERROR or errors[second] < MIN_COLOUR_LEAD * errors[nearest]:
        raise _Refusal(f"the {what} is not in the palette: {tuple(round(float(level)) for level in colour)}")
    return list(palette)[nearest]


_SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])


def _lab(colours: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """sRGB of 0 .. 255 to CIELAB under D65."""
    levels = colours / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _SRGB_TO_XYZ.T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * (24389 / 27 / 116) + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
