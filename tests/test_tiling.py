"""Tiles: that they cover a picture, that their weights sum to 1, and that no one can tell the result from the whole."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_rig import DIM, awake, noise, upsampler

from dalle_2.errors import UsageError
from dalle_2.models.upsampler import Upsampler, enlarge
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoised
from dalle_2.sampling.guidance import guide
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.tiling import Tiling, spans, tiled

# Geometry

GEOMETRIES = [
    (length, tile, overlap, grid)
    for grid, tile, overlap in itertools.product((1, 4, 8), (8, 16, 24, 64), (0, 1, 5, 8, 16, 40))
    for length in (8, 16, 40, 72, 136, 256)
    if overlap <= tile - grid
]


def test_tiles_cover_every_pixel_and_their_weights_sum_to_one() -> None:
    for length, tile, overlap, grid in GEOMETRIES:
        total = torch.zeros(length, dtype=torch.float64)
        for span in spans(length, Tiling(tile, overlap, grid)):
            total[span.pixels] += span.weights
            assert (span.start % grid, len(span.weights)) == (0, min(tile, length))
            assert span.weights.min() >= 0
        assert torch.allclose(total, torch.ones_like(total), rtol=1e-12), (length, tile, overlap, grid)


def test_neighbours_share_what_was_asked_for_and_fade_within_it() -> None:
    for length, tile, overlap, grid in GEOMETRIES:
        tiles = spans(length, Tiling(tile, overlap, grid))
        assert tiles[0].start == 0
        assert tiles[-1].pixels.stop == length
        for left, right in itertools.pairwise(tiles):
            assert left.start < right.start
            assert left.pixels.stop - right.start >= overlap
            silent = overlap // 4
            assert silent == 0 or left.weights[-silent:].max() == right.weights[:silent].max() == 0
        if overlap >= 8:
            steps = [float(span.weights.diff().abs().max()) for span in tiles if len(span.weights) > 1]
            assert max(steps) <= 3 * math.pi / overlap


def test_weights_follow_a_raised_cosine() -> None:
    first, second = spans(12, Tiling(8, 4))
    rising = [0.0, 0.5 - 0.5 * math.cos(math.pi / 4), 0.5 + 0.5 * math.cos(math.pi / 4), 1.0]
    assert (first.start, second.start) == (0, 4)
    assert second.weights.tolist() == pytest.approx([*rising, 1, 1, 1, 1])
    assert first.weights.tolist() == pytest.approx([1, 1, 1, 1, *reversed(rising)])
    (alone,) = spans(7, Tiling(8, 4))
    assert alone.weights.tolist() == [1.0] * 7


def test_an_eighth_overlaps_unless_said_otherwise() -> None:
    assert (Tiling(256).shared, Tiling(256, 0).shared, Tiling(8, grid=8).shared) == (32, 0, 0)
    assert [span.start for span in spans(1024, Tiling(256))] == [0, 224, 448, 672, 768]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 0}, "a tile must be a multiple of 1 px here, got 0: say 1"),
        ({"tile": 100, "grid": 8}, "a tile must be a multiple of 8 px here, got 100: say 96 or 104"),
        ({"tile": 4, "grid": 8}, "got 4: say 8"),
        ({"tile": 64, "overlap": 64}, "tiles of 64 px may overlap by 0 to 63 px here, got 64"),
        ({"tile": 64, "overlap": 60, "grid": 8}, "by 0 to 56 px here, got 60"),
        ({"tile": 64, "overlap": -1}, "got -1"),
        ({"tile": 64, "at_once": 0}, "at_once must be at least 1 tile, got 0"),
    ],
)
def test_tiles_that_can_not_be_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Tiling(**options)


# The denoiser

REACH = 6  # pixels that the network below sees in each direction


class Local:
    """A network that looks at the neighbourhood of a pixel, at a picture beside it, at a vector and at the time."""

    def __init__(self, *, variance: bool = False) -> None:
        self.kernels = [noise(4, channels, 5, 5, seed=k) / 8 for k, channels in enumerate((6, 4, 4))]
        self.variance, self.seen = variance, []

    def __call__(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Denoised:
        self.seen.append(tuple(x_t.shape))
        h = torch.cat([x_t, condition["picture"]], dim=1)
        for kernel in self.kernels:
            h = torch.tanh(F.conv2d(h, kernel, padding=2))
        h = h + (condition["z"] + t / 50)[:, None, None, None]
        return Denoised(h[:, :3], h[:, :1].expand(-1, 3, -1, -1) if self.variance else None)


X, T = noise(2, 3, 72, 104), torch.tensor([10, 30])
CONDITION = {"z": torch.tensor([0.5, -0.5]), "picture": noise(2, 3, 72, 104, seed=1)}


def in_tiles(network: Any, tile: int, overlap: int, at_once: int = 4) -> Denoised:
    return tiled(network, Tiling(tile, overlap, at_once=at_once), pictures=("picture",))(X, T, CONDITION)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_tiles_give_what_the_whole_picture_gives(at_once: int) -> None:
    """Where a quarter of the overlap is as much as the network sees; with less of it, they don't."""
    whole = Local()(X, T, CONDITION).x_0
    torch.testing.assert_close(in_tiles(Local(), 40, 4 * REACH, at_once).x_0, whole, rtol=0, atol=1e-5)
    assert (in_tiles(Local(), 40, REACH, at_once).x_0 - whole).abs().max() > 1e-3


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_no_call_sees_more_than_it_may(at_once: int) -> None:
    network = Local()
    in_tiles(network, 40, 24, at_once)
    rows = 2 * len(spans(72, Tiling(40, 24))) * len(spans(104, Tiling(40, 24)))
    assert {shape[1:] for shape in network.seen} == {(3, 40, 40)}
    assert [shape[0] for shape in network.seen] == [min(at_once, rows - k) for k in range(0, rows, at_once)]


def test_a_picture_of_one_tile_is_the_network_itself() -> None:
    network = Local()
    answer = in_tiles(network, 104, 24)
    assert network.seen == [tuple(X.shape)]
    assert torch.equal(answer.x_0, Local()(X, T, CONDITION).x_0)


def test_a_learned_variance_is_blended_too() -> None:
    whole = Local(variance=True)(X, T, CONDITION).variance
    torch.testing.assert_close(in_tiles(Local(variance=True), 40, 24).variance, whole, rtol=0, atol=1e-5)
    assert in_tiles(Local(), 40, 24).variance is None


def test_guidance_goes_round_the_tiles() -> None:
    null = {"z": torch.zeros(1), "picture": CONDITION["picture"]}
    whole = guide(Local(), [null, CONDITION], 3.0)(X, T).x_0
    pieces = guide(tiled(Local(), Tiling(40, 24), pictures=("picture",)), [null, CONDITION], 3.0)
    torch.testing.assert_close(pieces(X, T).x_0, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_the_walk_is_one(eta: float) -> None:
    """The noise of all steps is that of the whole picture, and so is the result."""
    sampler, start = DDIMSampler(NoiseScheduler(50)), noise(2, 3, 72, 104, seed=3)

    def walked(network: Any) -> Tensor:
        seeded = PictureNoise([1, 2], "test")
        steps = list(sampler.steps(lambda x, t: network(x, t, CONDITION), start, 5, eta=eta, noise=seeded))
        return steps[-1].x_s

    pieces = tiled(Local(), Tiling(40, 24), pictures=("picture",))
    torch.testing.assert_close(walked(pieces), walked(Local()), rtol=0, atol=1e-4)


def seam(overlap: int) -> float:
    """The largest step between neighbouring pixels, of a network whose guess hangs on the mean of all that it sees."""

    def network(x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Denoised:
        mean = condition["picture"].mean((1, 2, 3), keepdim=True)
        return Denoised(mean.expand_as(x_t))

    slope = torch.linspace(-1, 1, 256).expand(1, 3, 256, 256).contiguous()
    x_0 = tiled(network, Tiling(64, overlap), pictures=("picture",))(slope, T[:1], {"picture": slope}).x_0
    return float(x_0.diff(dim=-1).abs().max())


def test_no_seam_shows_even_where_tiles_disagree() -> None:
    jump = 64 * 2 / 255  # between the means of tiles side by side
    assert seam(0) == pytest.approx(jump, rel=0.01)
    assert seam(32) < 0.11 * jump / 2  # neighbours share half, so their means are half as far apart


# The upsampler

SMALL = {"multiples": (1,), "channels": 8}  # sees 12 pixels in each direction


def without_norms(model: nn.Module) -> nn.Module:
    """Group norm takes the mean over all that it is shown; what is left looks at neighbourhoods."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return model


def enlarging(**options: Any) -> Upsampler:
    return awake(upsampler(SMALL, image_size=96, low_res_size=48, clip=None, **options)).eval()


def picture(height: int, width: int, rows: int = 1) -> Tensor:
    return enlarge(noise(rows, 3, height // 8, width // 8), (height, width)).clamp(-1, 1)


def test_an_upsampler_in_tiles_equals_itself_on_the_whole_picture() -> None:
    model, low_res = without_norms(enlarging()), picture(64, 80, 2)
    options = {"seeds": [1, 2], "whole": True}
    whole = model.sample(noise(2, DIM), low_res, 3, tile=160, **options)
    pieces = model.sample(noise(2, DIM), low_res, 3, tile=96, overlap=48, **options)
    assert whole.shape == (2, 3, 128, 160)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-3)
    assert (whole - enlarge(low_res, (128, 160))).abs().max() > 0.05


def test_norms_over_tiles_change_little() -> None:
    model, low_res = enlarging(), picture(64, 80)
    options = {"seeds": [1], "whole": True}
    whole = model.sample(noise(1, DIM), low_res, 3, tile=160, **options)
    pieces = model.sample(noise(1, DIM), low_res, 3, tile=96, overlap=48, **options)
    added = (whole - enlarge(low_res, (128, 160))).abs().mean()
    assert (pieces - whole).abs().mean() < 0.2 * added


def test_what_the_upsampler_was_made_for_is_one_tile_and_larger_pictures_are_cut() -> None:
    model = enlarging()
    sides: list[int] = []
    model.network.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    model.sample(None, picture(48, 48), 1, seeds=[0])
    model.sample(None, picture(64, 80), 1, seeds=[0], whole=True)
    assert sides[0] == 96
    assert set(sides[1:]) == {96}
    assert len(sides) > 1
    model.sample(None, picture(64, 80), 1, seeds=[0], whole=True, tile=32)
    assert sides[-1] == 32


def largest_activation(model: nn.Module, **options: Any) -> int:
    """Numbers in the largest tensor that any layer gives."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel()))
        for module in model.network.modules()  # type: ignore[union-attr]
    ]
    model.sample(None, picture(96, 96), 1, seeds=[0], whole=True, **options)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return max(sizes)


def test_memory_falls_with_the_tile() -> None:
    model, channels = enlarging(), 16  # two stacked feature maps of 8 channels each, normed before a block
    whole = largest_activation(model, tile=192)
    assert whole == channels * 192 * 192
    for tile in (64, 32):
        assert largest_activation(model, tile=tile) == channels * tile * tile


@pytest.mark.parametrize(("height", "width"), [(48, 48), (5, 7), (31, 64), (1, 1), (3, 90)])
def test_pictures_of_any_shape_are_enlarged_whole(height: int, width: int) -> None:
    """The U-Net takes sides divisible by 8; what is missing is mirrored, and cut off again."""
    model = awake(upsampler({"multiples": (1, 2), "patch": 4}, image_size=96, low_res_size=48)).eval()
    low_res = enlarge(noise(1, 3, 4, 4), (height, width)).clamp(-1, 1)
    x = model.sample(noise(1, DIM), low_res, 2, seeds=[1], whole=True)
    assert x.shape == (1, 3, 2 * height, 2 * width)
    assert x.isfinite().all()
    below, right = -height % 4, -width % 4
    if min(height, width) > 3:
        mirrored = torch.cat([low_res, low_res[:, :, list(range(height - 2, height - 2 - below, -1))]], 2)
        mirrored = torch.cat([mirrored, mirrored[..., list(range(width - 2, width - 2 - right, -1))]], 3)
        by_hand = model.sample(noise(1, DIM), mirrored, 2, seeds=[1], whole=True)
        assert torch.equal(x, by_hand[..., : 2 * height, : 2 * width])


def test_the_usual_size_is_the_same_whole_or_not() -> None:
    model, low_res = enlarging(), picture(48, 48)
    plain = model.sample(noise(1, DIM), low_res, 2, seeds=[1])
    assert torch.equal(plain, model.sample(noise(1, DIM), low_res, 2, seeds=[1], whole=True))


def test_tiles_that_the_network_can_not_take_are_refused() -> None:
    model = upsampler({"patch": 4}, image_size=64, low_res_size=32)
    with pytest.raises(UsageError, match="a tile must be a multiple of 8 px here, got 20: say 16 or 24"):
        model.sample(None, noise(1, 3, 32, 32), 1, tile=20)
    with pytest.raises(UsageError, match="tiles of 32 px may overlap by 0 to 24 px here, got 30"):
        model.sample(None, noise(1, 3, 32, 32), 1, tile=32, overlap=30)
