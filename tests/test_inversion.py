"""DDIM inversion: up to the noise that DDIM turns into given data, and back."""

import math
from itertools import pairwise

import pytest
import torch
from exact_denoisers import COSINE, LINEAR, MU, STD, gaussian

from dalle_2.errors import UsageError
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import to_denoiser
from dalle_2.sampling.guidance import threshold
from dalle_2.sampling.inversion import invert

SCHEDULES = pytest.mark.parametrize("scheduler", [COSINE, LINEAR], ids=["cosine", "linear"])


def network(scheduler):
    """Some smooth network that answers with a velocity, linear in nothing."""

    def predict(x, t):
        near = torch.roll(x, 1, -1) - torch.roll(x, 1, -2)
        return torch.tanh(1.3 * x + 0.4 * near + 0.2) * (0.2 + 0.5 * t.view(-1, 1, 1, 1) / 1000)

    return to_denoiser(predict, scheduler, "v")


def data(*shape, dtype=torch.float64):
    return MU + STD * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def last(steps):
    *_, step = steps
    return step.x_s


def round_trip(denoiser, x_0, steps, scheduler, *, spacing="trailing", refine=0):
    x_T = last(invert(denoiser, x_0, steps, noise_scheduler=scheduler, spacing=spacing, refine=refine))
    return last(DDIMSampler(scheduler).steps(denoiser, x_T, steps, spacing=spacing))


def miss(x, x_0):
    return float((x - x_0).abs().max())


def psnr(x, x_0):
    """Of pictures in [-1, 1]."""
    return 10 * math.log10(4 / float((x - x_0).square().mean()))


@SCHEDULES
def test_the_noise_found_is_the_samples_own_quantile(scheduler):
    """Along the ODE a Gaussian keeps every sample at its own quantile."""
    x_0, a = data(2, 50), float(scheduler.alpha_bar[-1])
    exact = math.sqrt(a) * MU + math.sqrt(a * STD**2 + 1 - a) * (x_0 - MU) / STD
    errors = []
    for steps in (50, 100, 200):
        errors.append(miss(last(invert(gaussian(scheduler), x_0, steps, noise_scheduler=scheduler)), exact))
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2]
    assert errors[2] < 0.2


@SCHEDULES
def test_the_explicit_round_trip_gets_nearer_with_more_steps(scheduler):
    x_0 = data(2, 50)
    errors = [miss(round_trip(gaussian(scheduler), x_0, steps, scheduler), x_0) for steps in (30, 60, 120)]
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2]


@SCHEDULES
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "logsnr"])
def test_the_refined_round_trip_is_exact_at_any_number_of_steps(scheduler, spacing):
    x_0 = data(2, 50)
    for steps in (6, 10):
        explicit, refined, more = (
            miss(round_trip(gaussian(scheduler), x_0, steps, scheduler, spacing=spacing, refine=refine), x_0)
            for refine in (0, 8, 24)
        )
        assert refined < 0.2 * explicit
        assert more < 0.2 * refined


@SCHEDULES
def test_a_networks_picture_comes_back(scheduler):
    x_0 = data(2, 3, 8, 8, dtype=torch.float32).clamp(-1, 1)
    rough, finer, refined = (
        psnr(round_trip(network(scheduler), x_0, steps, scheduler, refine=refine), x_0)
        for steps, refine in ((15, 0), (60, 0), (15, 8))
    )
    assert rough < finer < refined
    assert finer > 30
    assert refined > 80


def test_a_picture_comes_back_through_a_denoiser_that_clips():
    x_0 = torch.where(data(2, 3, 8, 8) > MU, 1.0, -0.2).double()  # half of it at the limit
    clipping = threshold(gaussian(COSINE))
    explicit, refined = (miss(round_trip(clipping, x_0, 10, COSINE, refine=refine), x_0) for refine in (0, 30))
    assert refined < 1e-3 < explicit


# The walk


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "logsnr"])
def test_it_climbs_the_grid_that_sampling_descends(spacing):
    up = list(invert(gaussian(COSINE), data(2, 3), 6, noise_scheduler=COSINE, spacing=spacing))
    down = list(DDIMSampler(COSINE).steps(gaussian(COSINE), data(2, 3), 6, spacing=spacing))
    assert [(step.s, step.t) for step in reversed(up)] == [(step.t, step.s) for step in down]
    assert [step.index for step in up] == list(range(6))
    assert up[0].t == -1
    assert all(low.x_s is high.x_t for low, high in pairwise(up))


@pytest.mark.parametrize(("refine", "calls"), [(0, [0, 249, 499, 749]), (1, [0, 249, 249, 499, 499, 749, 749, 999])])
def test_the_network_is_asked_from_the_least_noise_upwards(refine, calls):
    asked = []

    def listening(x, t):
        asked.append(t[0].item())
        return gaussian(COSINE)(x, t)

    list(invert(listening, data(1, 3), 4, noise_scheduler=COSINE, refine=refine))
    assert asked == calls


def test_a_walk_half_way_and_no_gradient():
    x_0 = data(1, 3)
    wanting = x_0.clone().requires_grad_()
    x = last(invert(gaussian(COSINE), wanting, 3, noise_scheduler=COSINE, timesteps=[500, 250.5, 20], refine=50))
    assert not x.requires_grad
    back = last(DDIMSampler(COSINE).steps(gaussian(COSINE), x, 3, timesteps=[500, 250.5, 20]))
    assert miss(back, x_0) < 1e-6


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (0, {}, "from 1 to T = 1000, got 0"),
        (1001, {}, "from 1 to T = 1000, got 1001"),
        (2, {"timesteps": [5]}, "1 timesteps for 2 steps"),
        (5, {"refine": -1}, "refine must be a whole number from 0 up, got -1"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(steps, options, message):
    with pytest.raises(UsageError, match=message):
        invert(gaussian(COSINE), data(1, 3), steps, noise_scheduler=COSINE, **options)
