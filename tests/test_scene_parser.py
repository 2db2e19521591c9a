"""The scene parser: right on what was rendered, silent on what was not."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from dalle_2.data.render import render
from dalle_2.data.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, SceneObject
from dalle_2.data.shapes import Shapes
from dalle_2.errors import UsageError
from dalle_2.evaluation.components import label
from dalle_2.evaluation.intervals import wilson
from dalle_2.evaluation.scene_parser import Unreadable, _lab, parse


def _attributes(scene: Scene | Unreadable) -> object:
    if isinstance(scene, Unreadable):
        return scene
    return scene.background, sorted((thing.colour, thing.shape, thing.size) for thing in scene.objects)


def _blurred(image: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(image.astype(np.float32), ((4, 4), (4, 4), (0, 0)), mode="edge")
    down = sum(weight * padded[i : i + image.shape[0]] for i, weight in enumerate(kernel))
    return sum(weight * down[:, i : i + image.shape[1]] for i, weight in enumerate(kernel))


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _rate_read_right(count: int, size: int, spoil: Callable[[np.ndarray], np.ndarray]) -> float:
    shapes = Shapes(size, length=count, seed=11)
    return (
        sum(
            _attributes(parse(spoil(shapes[i].image))) == _attributes(shapes.scene(i)[0])
            for i in range(count)
        )
        / count
    )


@pytest.mark.parametrize(("size", "count"), [(256, 150), (64, 60)])
def test_rendered_scenes_are_read_right(size: int, count: int) -> None:
    assert _rate_read_right(count, size, lambda image: image) >= 0.995


def test_blurred_and_noisy_scenes_are_read_right() -> None:
    rng = np.random.default_rng(0)
    assert (
        _rate_read_right(60, 256, lambda image: _levels(_blurred(image) + rng.normal(0, 5, image.shape)))
        >= 0.98
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_places_and_radii_are_read_to_a_pixel(shape: str) -> None:
    thing = SceneObject("green", shape, "medium", 0.31, 0.62, 0.143)
    read = parse(render(Scene("gray", (thing,)), 256))
    assert isinstance(read, Scene)
    (found,) = read.objects
    assert (found.x, found.y, found.radius) == pytest.approx((thing.x, thing.y, thing.radius), abs=1 / 256)


def test_every_colour_is_read_on_every_background() -> None:
    for background in BACKGROUNDS:
        for colour in COLOURS:
            scene = Scene(background, (SceneObject(colour, "star", "small", 0.5, 0.5, 0.095),))
            assert _attributes(parse(render(scene, 128))) == _attributes(scene)


Rubbish = Callable[[np.random.Generator], np.ndarray]
DOWN, ACROSS = np.mgrid[0:256, 0:256] / 256


def _disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(ACROSS - x, DOWN - y) < radius


def _painted(*parts: tuple[np.ndarray, str]) -> np.ndarray:
    picture = np.full((256, 256, 3), BACKGROUNDS["white"], np.float64)
    for mask, colour in parts:
        picture[mask] = COLOURS[colour]
    return picture


def _smear(rng: np.random.Generator) -> np.ndarray:
    colours = list(COLOURS)
    discs = [_disc(*rng.uniform(0.35, 0.65, 2), rng.uniform(0.08, 0.14)) for _ in range(6)]
    return _painted(*((disc, colours[rng.integers(8)]) for disc in discs))


def _blob(rng: np.random.Generator) -> np.ndarray:
    angle = np.arctan2(DOWN - 0.5, ACROSS - 0.5)
    waves = sum(rng.uniform(0.1, 0.2) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5))
    return _painted((np.hypot(ACROSS - 0.5, DOWN - 0.5) < 0.2 * (1 + waves), "red"))


def _gradient(rng: np.random.Generator) -> np.ndarray:
    low, high = rng.uniform(0, 100, 3), rng.uniform(150, 255, 3)
    return low + (high - low) * DOWN[:, :, None]


def _glow(rng: np.random.Generator) -> np.ndarray:
    strength = np.exp(-0.5 * ((ACROSS - 0.5) ** 2 + (DOWN - 0.5) ** 2) / 0.12**2)[:, :, None]
    return 248 + (np.array(COLOURS["blue"]) - 248) * strength


RUBBISH: dict[str, tuple[Rubbish, str]] = {
    "noise": (lambda rng: rng.uniform(0, 255, (256, 256, 3)), "border"),
    "gradient": (_gradient, "border"),
    "colourful smear": (_smear, "one colour|fits|radius"),
    "blob": (_blob, "fits|may be"),
    "glow": (_glow, "fits|colour"),
    "empty": (lambda rng: _painted(), "0 objects"),
    "no palette's background": (
        lambda rng: _painted() * 0 + (90, 200, 160),
        "background .* not in the palette",
    ),
    "no palette's colour": (
        lambda rng: np.where(_disc(0.5, 0.5, 0.14)[:, :, None], (110, 70, 30), 248),
        "colour .* not",
    ),
    "four objects": (
        lambda rng: _painted(*((_disc(x, y, 0.1), "red") for x in (0.25, 0.75) for y in (0.25, 0.75))),
        "4 objects",
    ),
    "specks": (
        lambda rng: _painted(*((_disc(*rng.uniform(0.1, 0.9, 2), 0.014), "red") for _ in range(20))),
        "specks",
    ),
    "fine noise within": (
        lambda rng: _painted((_disc(0.5, 0.5, 0.4) & (rng.random((256, 256)) < 0.5), "red")),
        "noise|one colour|fits|colour",
    ),
    "too large": (lambda rng: _painted((_disc(0.5, 0.5, 0.3), "red")), "radius"),
    "too small": (lambda rng: _painted((_disc(0.5, 0.5, 0.04), "red")), "radius"),
    "fills the picture": (lambda rng: _painted((_disc(0.5, 0.5, 0.48), "red")), "most of the picture"),
    "uneven background": (
        lambda rng: _painted() * 0 + 124 + 20 * np.sin(40 * (ACROSS + DOWN)[:, :, None] + rng.uniform(0, 6)),
        "uneven",
    ),
    "between circle and square": (
        lambda rng: _painted(((np.abs(ACROSS - 0.5) ** 4 + np.abs(DOWN - 0.5) ** 4) < 0.14**4, "red")),
        "may be",
    ),
    "ellipse": (
        lambda rng: _painted((np.hypot((ACROSS - 0.5) / 1.3, (DOWN - 0.5) * 1.3) < 0.14, "red")),
        "fits|may be",
    ),
    "touching objects": (
        lambda rng: _painted((_disc(0.4, 0.5, 0.11), "red"), (_disc(0.6, 0.5, 0.11), "blue")),
        "one colour|fits",
    ),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_unreadable(name: str) -> None:
    make, reason = RUBBISH[name]
    for seed in range(2):
        read = parse(_levels(make(np.random.default_rng(seed)) - 0.5))
        assert isinstance(read, Unreadable)
        assert re.search(reason, read.reason), read.reason


@pytest.mark.parametrize("shape", [(256, 255, 3), (16, 16, 3)])
def test_other_formats_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="square picture"):
        parse(np.zeros(shape, np.uint8))


def _flooded(mask: np.ndarray) -> np.ndarray:
    """Regions numbered by the plainest method, to compare with."""
    labels = np.zeros(mask.shape, int)
    for seed in zip(*np.nonzero(mask), strict=True):
        stack = [] if labels[seed] else [seed]
        number = labels.max() + 1
        while stack:
            y, x = stack.pop()
            if not (0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]) or labels[y, x] or not mask[y, x]:
                continue
            labels[y, x] = number
            stack += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return labels


@pytest.mark.parametrize("density", [0.0, 0.2, 0.4, 0.6, 1.0])
def test_regions_are_those_of_a_flood_fill(density: float) -> None:
    for seed in range(8):
        mask = np.random.default_rng(seed).random((17, 23)) < density
        labels, expected = label(mask), _flooded(mask)
        assert labels is not None
        pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
        assert len(pairs) == len(set(labels.ravel())) == len(set(expected.ravel()))
        assert (labels > 0).tolist() == mask.tolist()


def test_a_mask_of_noise_has_no_regions() -> None:
    assert label(np.random.default_rng(0).random((128, 128)) < 0.5, max_runs=1000) is None


def test_lab_has_the_published_values() -> None:
    colours = np.array([[255.0, 0, 0], [0, 0, 255], [255, 255, 255], [119, 119, 119]])
    expected = [[53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [100, 0, 0], [50.03, 0, 0]]
    assert np.abs(_lab(colours) - expected).max() < 0.1


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (500, 500, 0.9924, 1.0)]
)
def test_wilson_intervals_have_the_known_bounds(hits: int, n: int, low: float, high: float) -> None:
    rate = wilson(hits, n)
    assert (rate.value, rate.low, rate.high) == pytest.approx((hits / n, low, high), abs=2e-4)


def test_a_rate_of_nothing_has_no_value() -> None:
    assert wilson(0, 0).value is None
    assert not math.isnan(wilson(1, 3).value or math.nan)
