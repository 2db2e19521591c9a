"""The BSR degradation: each of its steps against what it should do, and what they are together."""

import io
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from training_rig import generator, noise

from dalle_2.config import parse
from dalle_2.data.shapes import Shapes
from dalle_2.errors import ConfigError
from dalle_2.images import from_pil, to_pil
from dalle_2.models import degradation
from dalle_2.models.degradation import (
    KERNELS,
    BSRSettings,
    Dice,
    Fate,
    compress,
    degraded,
    filtered,
    gaussian,
    jpeg,
    long_blur,
    mixing,
    nearest,
    resize,
    resized,
    round_blur,
)

FULL = BSRSettings(strength=(1.0, 1.0))


def fate(seed: int = 0, strength: float = 1.0, **settings: Any) -> Fate:
    return Fate(BSRSettings(**settings), strength, 4, (8, 8), Dice(generator(seed)))


def smooth(rows: int, side: int, seed: int = 0) -> Tensor:
    return F.interpolate(noise(rows, 3, 4, 4, seed=seed), (side, side), mode="bicubic").clamp(-0.8, 0.8)


# Together


@pytest.mark.parametrize(("scale", "height", "width"), [(4, 64, 64), (4, 32, 48), (2, 16, 16), (4, 8, 8), (3, 9, 3)])
def test_small_pictures_have_exactly_their_size_and_range(scale: int, height: int, width: int) -> None:
    x = noise(40, 3, height, width)
    small = degraded(x.clamp(-1, 1), scale, FULL, generator())
    assert small.shape == (40, 3, height // scale, width // scale)
    assert small.dtype == torch.float32
    assert -1 <= small.min() < small.max() <= 1


def test_all_follows_from_the_generator() -> None:
    x = smooth(6, 32)
    first, again, other = (degraded(x, 4, FULL, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    degraded(x, 4, FULL, generator())
    assert torch.equal(torch.get_rng_state(), before)


def recorded(monkeypatch: pytest.MonkeyPatch, pictures: int, settings: BSRSettings) -> list[list[tuple[int, float]]]:
    """For each picture its steps, by number, and their strength."""
    told: list[tuple[int, float]] = []

    def step(number: int) -> Any:
        return lambda x, fate: (told.append((number, fate.strength)), x)[1]

    count = len(degradation.STEPS)
    monkeypatch.setattr(degradation, "STEPS", tuple(map(step, range(count))))
    degraded(torch.zeros(pictures, 3, 4, 4), 2, settings, generator())
    return [told[start : start + count] for start in range(0, len(told), count)]


def test_every_picture_has_an_order_and_a_strength_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = recorded(monkeypatch, 1200, BSRSettings(strength=(0.2, 0.6)))
    orders = Counter(tuple(number for number, _ in row) for row in rows)
    assert set(orders) == set(itertools.permutations(range(5)))
    assert max(orders.values()) < 10 + 6 * math.sqrt(10)
    strengths = [{strength for _, strength in row} for row in rows]
    assert all(len(one) == 1 for one in strengths)
    values = torch.tensor([one.pop() for one in strengths])
    assert 0.2 <= values.min() < 0.22
    assert 0.58 < values.max() <= 0.6
    assert float(values.mean()) == pytest.approx(0.4, abs=4 * 0.4 / math.sqrt(12 * 1200))


def test_at_no_strength_only_the_size_changes() -> None:
    x = noise(30, 3, 16, 16).clamp(-1, 1)
    small = degraded(x, 4, BSRSettings(strength=(0.0, 0.0), twice=0.0), generator())
    for picture, found in zip(x, small, strict=True):
        ways = [
            F.interpolate(picture[None], (4, 4), mode=mode, align_corners=None if mode == "area" else False)[0]
            for mode in ("bilinear", "bicubic", "area")
        ]
        ways += [nearest(picture, (4, 4), flips) for flips in ([], [-1], [-2], [-2, -1])]
        assert any(torch.equal(way.clamp(-1, 1), found) for way in ways)


@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (0.5, -0.4, 0.1), (-0.6, -0.6, 0.7)])
def test_a_colour_stays_that_colour_on_average(colour: tuple[float, float, float]) -> None:
    wanted = torch.tensor(colour)
    small = degraded(wanted[:, None, None].expand(300, 3, 16, 16), 4, FULL, generator())
    assert (small.mean((0, 2, 3)) - wanted).abs().max() < 0.01


def test_pictures_keep_their_colours_and_places_on_average() -> None:
    """White comes out a little grey, since noise can't make it whiter."""
    shapes = Shapes(64, 40)
    x = torch.stack([from_pil(Image.fromarray(shapes[k].image)) for k in range(40)])
    small = degraded(x.repeat(5, 1, 1, 1), 4, FULL, generator()).unflatten(0, (5, 40)).mean(0)
    off = small - F.avg_pool2d(x, 4)
    assert off.mean((0, 2, 3)).abs().max() < 0.03
    assert off.abs().mean() < 0.1
    for shift in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        moved = torch.roll(small, shift, (-2, -1))
        assert (moved - F.avg_pool2d(x, 4)).square().mean() > off.square().mean()


# Blur


def test_a_gaussian_has_its_widths_along_its_axes() -> None:
    steps = torch.arange(-20, 21, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    for along, across, angle in ((2.0, 2.0, 0.3), (2.8, 0.7, 0.0), (2.5, 1.0, math.pi / 3), (1.0, 2.5, 2.5)):
        kernel = gaussian(20, along, across, angle)
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
        u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        assert float((kernel * u**2).sum()) == pytest.approx(along**2, rel=0.01)
        assert float((kernel * v**2).sum()) == pytest.approx(across**2, rel=0.01)
        assert float((kernel * u * v).sum()) == pytest.approx(0, abs=0.01)


def test_an_impulse_becomes_the_kernel() -> None:
    point = torch.zeros(3, 31, 31)
    point[1, 15, 15] = 1
    spread = filtered(point, 2.0, 0.8, 0.5)
    assert torch.allclose(spread[1, 9:22, 9:22], gaussian(6, 2.0, 0.8, 0.5).flip(0, 1), atol=1e-6)
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert spread[::2].abs().max() == 0


def test_blur_leaves_flat_pictures_and_small_ones_in_place() -> None:
    flat = torch.full((3, 12, 9), 0.3)
    assert torch.allclose(filtered(flat, 2.8, 1.0, 0.7), flat, atol=1e-6)
    assert filtered(flat, 0.01, 0.02) is flat
    for shape in ((3, 1, 1), (3, 2, 5), (3, 1, 9)):
        assert filtered(noise(*shape), 2.8, 2.8).shape == shape


@pytest.mark.parametrize("step", [round_blur, long_blur])
def test_blurs_are_as_wide_as_drawn(step: Any) -> None:
    point = torch.zeros(3, 41, 41)
    point[:, 20, 20] = 1
    axis = torch.arange(-20, 21.0)
    widths = []
    for seed in range(60):
        spread = step(point, fate(seed, 0.5, blur=(2.0, 4.0), axes=(2.0, 4.0)))[0]
        widths.append(float(((axis**2 + axis[:, None] ** 2) * spread).sum().div(2).sqrt()))
    assert 0.95 <= min(widths) < 1.3
    assert 1.7 < max(widths) <= 2.0


# Size


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_keeps_ramps_in_place(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over its choices: a kernel that picks the same neighbour each time would shift the picture."""
    monkeypatch.setattr(Dice, "among", lambda self, options: kernel)
    ramp = torch.linspace(-1, 1, 64).expand(3, 64, 64)
    wanted = F.avg_pool2d(ramp[None], 4)[0]
    small = torch.stack([resized(ramp, (16, 16), Dice(generator(seed))) for seed in range(200)]).mean(0)
    assert small.shape == (3, 16, 16)
    assert (small - wanted).abs().max() < 0.2 * 2 / 63


def test_of_two_nearest_pixels_either_is_picked() -> None:
    x = torch.arange(16.0).expand(3, 2, 16)
    assert nearest(x, (2, 4), [])[0, 0].tolist() == [2, 6, 10, 14]
    assert nearest(x, (2, 4), [-1])[0, 0].tolist() == [1, 5, 9, 13]
    assert nearest(x, (2, 16), [-1, -2])[0, 0].tolist() == list(range(16))


def test_a_change_of_size_in_two_steps_stays_between() -> None:
    x = noise(3, 32, 32)
    assert all(resize(x, fate(seed, twice=0.0)).shape == (3, 8, 8) for seed in range(20))
    sides = [resize(x, fate(seed, twice=1.0)).shape[-1] for seed in range(300)]
    assert (min(sides), max(sides)) == (4, 32)
    assert 300 * 0.15 < sum(resize(x, fate(seed)).shape[-1] != 8 for seed in range(300)) < 300 * 0.35


# Noise


def test_noise_has_the_width_and_the_colours_it_was_mixed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3, 200, 200)
    for matrix in (torch.eye(3), torch.tensor([[1.0, 0, 0]] * 3), noise(3, 3)):
        monkeypatch.setattr(degradation, "mixing", lambda dice, matrix=matrix: matrix)
        added = degradation.noise(x, fate(strength=0.5, noise=(20.0, 20.0))).flatten(1)
        sigma = 0.5 * 20 * 2 / 255
        assert torch.allclose(torch.cov(added), sigma**2 * matrix @ matrix.T, atol=0.03 * sigma**2 * matrix.norm() ** 2)
        assert added.mean(1).abs().max() < 4 * sigma * float(matrix.norm()) / 200


def test_noise_is_of_each_channel_grey_or_of_any_colours() -> None:
    drawn = [mixing(Dice(generator(seed))) for seed in range(400)]
    own = [m for m in drawn if torch.equal(m, torch.eye(3))]
    grey = [m for m in drawn if torch.equal(m @ m.T, torch.ones(3, 3))]
    others = [m @ m.T for m in drawn if not any(m is one for one in own + grey)]
    assert [len(own) / 400, len(grey) / 400, len(others) / 400] == pytest.approx([0.4, 0.4, 0.2], abs=0.08)
    spectra = torch.stack([torch.linalg.eigvalsh(covariance) for covariance in others])
    assert -1e-6 <= spectra.min() < spectra.max() <= 1 + 1e-6
    assert max(float((covariance - covariance.diag().diag()).abs().max()) for covariance in others) > 0.2


# JPEG


@pytest.mark.parametrize(("height", "width"), [(64, 64), (13, 30), (1, 1)])
def test_jpeg_is_what_pillow_makes_of_the_picture(height: int, width: int) -> None:
    x = F.interpolate(noise(1, 3, 4, 4), (height, width), mode="bicubic")[0].clamp(-1, 1)
    with io.BytesIO() as file:
        to_pil(x).save(file, format="JPEG", quality=40)
        assert torch.equal(jpeg(x, 40), from_pil(Image.open(file)))
    assert jpeg(x, 40).shape == x.shape
    assert (jpeg(x, 95) - x).abs().mean() <= (jpeg(x, 10) - x).abs().mean()


def test_jpeg_comes_as_often_as_it_should() -> None:
    x = smooth(1, 16)[0]
    touched = [not torch.equal(compress(x, fate(seed, jpeg=0.6)), x) for seed in range(300)]
    assert sum(touched) / 300 == pytest.approx(0.6, abs=0.1)
    assert compress(x, fate(strength=0.0, jpeg=1.0)) is x


def test_jpeg_is_better_where_the_degradation_is_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(degradation, "jpeg", lambda x, quality: (asked.append(quality), x)[1])
    for strength in (1.0, 0.5, 0.1):
        compress(torch.zeros(3, 8, 8), fate(strength=strength, jpeg=1.0, quality=(40.0, 40.0)))
    assert asked == [40, 70, 94]


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strength": (1.0, 0.5)}, "'strength' must be two numbers from 0 up, the lower one first"),
        ({"blur": (-1.0, 0.5)}, "'blur' must be two numbers from 0 up"),
        ({"quality": (0.0, 90.0)}, "'quality.0'.*greater than or equal to 1"),
        ({"quality": (30.0, 101.0)}, "'quality.1'.*less than or equal to 100"),
        ({"jpeg": 1.5}, "'jpeg'.*less than or equal to 1"),
        ({"noise": 3.0}, "'noise'"),
    ],
)
def test_ranges_that_can_not_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(BSRSettings, settings)
