"""Draws scenes at any size, anti-aliased, from the signed distances of their shapes."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from dalle_2.data.scenes import BACKGROUNDS, COLOURS, EXTENT, Rgb, Scene, SceneObject
from dalle_2.errors import UsageError

Distance = Float[np.ndarray, "h w"]
Row = Float[np.ndarray, "1 w"]
Column = Float[np.ndarray, "h 1"]


def _circle(u: Row, v: Column) -> Distance:
    return np.sqrt(u * u + v * v) - np.float32(1.0)


def _square(u: Row, v: Column) -> Distance:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.88)


def _triangle(u: Row, v: Column) -> Distance:
    """Equilateral, standing on a side at v = 0.93, with its tip at v = -0.93."""
    return np.maximum(
        np.abs(u) * np.float32(_COS_30) + (np.float32(-0.93) - v) * np.float32(0.5), v - np.float32(0.93)
    )


def _diamond(u: Row, v: Column) -> Distance:
    return (np.abs(u) + np.abs(v) - np.float32(1.12)) * np.float32(math.sqrt(0.5))


def _star(u: Row, v: Column) -> Distance:
    """Five points: folded into a tenth of the plane, then the distance to the one edge that is left."""
    x, y = np.abs(u), np.float32(0.08) - v
    for axis_x in (_COS_36, -_COS_36):
        reach = np.maximum(x * np.float32(axis_x) - y * np.float32(_SIN_36), 0)
        x, y = x - reach * np.float32(2 * axis_x), y + reach * np.float32(2 * _SIN_36)
    x, y = np.abs(x), y - np.float32(_STAR_TIP)
    edge_x, edge_y = _STAR_WAIST * _SIN_36, _STAR_WAIST * _COS_36 - _STAR_TIP
    length = math.hypot(edge_x, edge_y)
    return y * np.float32(edge_x / length) - x * np.float32(edge_y / length)


def _cross(u: Row, v: Column) -> Distance:
    a, b, arm, half_width = np.abs(u), np.abs(v), np.float32(1.02), np.float32(0.36)
    upright = np.maximum(a - half_width, b - arm)
    return np.minimum(upright, np.maximum(a - arm, b - half_width))


def _heart(u: Row, v: Column) -> Distance:
    """A square on its tip with half discs on its two upper sides."""
    a, half, middle = np.abs(u), np.float32(_HEART), np.float32(0.1035 * _HEART)
    tip = (a + np.abs(v - middle) - half) * np.float32(math.sqrt(0.5))
    x, y = a - half / 2, v - (middle - half / 2)
    return np.minimum(tip, np.sqrt(x * x + y * y) - half * np.float32(math.sqrt(0.5)))


def _ring(u: Row, v: Column) -> Distance:
    return np.abs(np.sqrt(u * u + v * v) - np.float32(0.79)) - np.float32(0.24)


_COS_30 = math.cos(math.pi / 6)
_COS_36, _SIN_36 = math.cos(math.pi / 5), math.sin(math.pi / 5)
_STAR_TIP, _STAR_WAIST = 1.15, 0.54
_HEART = 0.9
_DISTANCES: dict[str, Callable[[Row, Column], Distance]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "ring": _ring,
}


def coverage(
    shape: str, columns: Float[np.ndarray, " w"], rows: Float[np.ndarray, " h"], radius: float
) -> Float[np.ndarray, "h w"]:
    """How much of each pixel a shape covers, 0 to 1.

    `columns` and `rows` are the pixel centres relative to the shape's centre and `radius` its radius,
    all in pixels.
    """
    scale = np.float32(1 / radius)
    distance = _DISTANCES[shape]((columns * scale)[None, :], (rows * scale)[:, None])
    distance *= np.float32(-radius)
    distance += np.float32(0.5)
    return np.clip(distance, 0, 1, out=distance)


def render(
    scene: Scene, size: int = 64, *, jitter: Sequence[Rgb] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The scene as a picture of size x size pixels.

    `jitter` moves the colours by a few levels: one triple for the background, then one for each object.
    Raises UsageError below 8 pixels.
    """
    if size < 8:
        raise UsageError(f"a picture needs at least 8 pixels a side, got {size}")
    shifts = jitter or [(0, 0, 0)] * (1 + len(scene.objects))
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = _shifted(BACKGROUNDS[scene.background], shifts[0])
    for thing, shift in zip(scene.objects, shifts[1:], strict=True):
        _draw(picture, thing, _shifted(COLOURS[thing.colour], shift))
    return picture


def _shifted(colour: Rgb, shift: Rgb) -> UInt8[np.ndarray, "3"]:
    return np.array(
        [min(max(level + step, 0), 255) for level, step in zip(colour, shift, strict=True)], np.uint8
    )


def _draw(picture: UInt8[np.ndarray, "h w 3"], thing: SceneObject, colour: UInt8[np.ndarray, "3"]) -> None:
    """Blends one object into the picture, touching only the pixels of its box."""
    size, reach = picture.shape[0], EXTENT * thing.radius + 1 / picture.shape[0]
    left, right = _pixels(thing.x - reach, thing.x + reach, size)
    top, bottom = _pixels(thing.y - reach, thing.y + reach, size)
    columns = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - thing.x * size)
    rows = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - thing.y * size)
    cover = coverage(thing.shape, columns, rows, thing.radius * size)[:, :, None]
    patch = picture[top:bottom, left:right]
    mixed = cover * (colour - patch.astype(np.float32))
    mixed += patch
    mixed += np.float32(0.5)
    patch[:] = mixed.astype(np.uint8)


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    return max(math.floor(low * size), 0), min(math.ceil(high * size), size)
