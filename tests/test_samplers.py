"""Every sampler against the exact answer, and what holds for all of them."""

import math
from itertools import pairwise

import pytest
import torch
from exact_denoisers import COSINE, LINEAR, MU, STD, exact_gaussian, exact_ode, gaussian, gaussian_table, mixture, start
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_2 import DDIMSampler, NoiseScheduler
from dalle_2.errors import UsageError
from dalle_2.sampling.ddpm_sampler import DDPMSampler
from dalle_2.sampling.dpm_solver_sampler import DPMSolverSampler
from dalle_2.sampling.grid import grid
from dalle_2.sampling.heun_sampler import HeunSampler
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.sampler import Sampler
from dalle_2.sampling.sampler_names import NAMES, sampler_name
from dalle_2.sampling.samplers import SAMPLERS, sampler
from dalle_2.sampling.spacing import spaced, walk
from dalle_2.sampling.unipc_sampler import UniPCSampler

SCHEDULES = pytest.mark.parametrize("scheduler", [COSINE, LINEAR], ids=["cosine", "linear"])
EVERY = pytest.mark.parametrize("name", NAMES)


def built(name, scheduler) -> Sampler:
    """The sampler of a name, ready to walk without a model."""
    if name == "ddpm-analytic":
        return DDPMSampler(scheduler, variance="analytic", eps_mean_square=gaussian_table(scheduler))
    return sampler(name, scheduler)


def walked(sampler, denoiser, x_T, steps, **options):
    noise = PictureNoise(range(len(x_T)), "test") if sampler.draws_noise else None
    return list(sampler.steps(denoiser, x_T, steps, **({"noise": noise} | options)))


# The table


def test_every_name_stands_in_the_table_and_builds_its_sampler():
    assert tuple(SAMPLERS) == NAMES
    assert [sampler(name, COSINE).name for name in NAMES] == list(NAMES)


def test_what_each_sampler_says_of_itself():
    facts = {
        "ddim": (1, False, True), "ddpm": (1, True, False), "ddpm-analytic": (1, True, False),
        "dpm++2m": (1, False, False), "dpm++2m-sde": (1, True, False), "heun": (2, False, False),
        "unipc": (1, False, False),
    }  # fmt: skip
    assert {name: (s.calls, s.draws_noise, s.takes_eta) for name in NAMES for s in [built(name, COSINE)]} == facts


@EVERY
def test_what_it_says_of_itself_is_true(name):
    ours, calls = built(name, LINEAR), []

    def counting(x, t):
        calls.append(len(x))
        return gaussian(LINEAR)(x, t)

    options = {"noise": PictureNoise([1, 2], "a")}
    first = list(ours.steps(counting, start(2, 3), 10, **options))[-1].x_s
    assert len(calls) == 10 * ours.calls - (ours.calls - 1)
    options = {"noise": PictureNoise([8, 9], "a")}
    again = list(ours.steps(counting, start(2, 3), 10, **options))[-1].x_s
    assert torch.equal(first, again) != ours.draws_noise


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dpm++2n", "did you mean 'dpm\\+\\+2m'"),
        ("DPM++2M-SDE", "did you mean 'dpm\\+\\+2m-sde'"),
        ("huen", "did you mean 'heun'"),
        ("UniPC", "did you mean 'unipc'"),
        ("euler", "there are ddim, ddpm, ddpm-analytic, .*unipc"),
        ("", "there are ddim"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(name, hint):
    for ask in (sampler_name, lambda name: sampler(name, COSINE)):
        with pytest.raises(UsageError, match=hint) as caught:
            ask(name)
        assert str(caught.value).startswith(f"no sampler {name!r}: ")


# Against the exact answer


def error(sampler, scheduler, steps):
    """After `steps` even steps in half-log-SNR, most of the way, how far from the exact solution."""
    sought = torch.linspace(-1.5, 2.5, steps + 1, dtype=torch.float64)
    timesteps = scheduler.timestep_at(2 * sought).tolist()
    *_, last = sampler.steps(mixture(scheduler), start(1, 32), steps + 1, timesteps=timesteps)
    met = torch.tensor([timesteps[0], timesteps[-1]])  # in float32, as the network is told
    low, high = (torch.logit(scheduler.alpha_bar_at(met)) / 2).tolist()
    return float((last.x_t - exact_ode(start(1, 32), low, high)).abs().max())


@SCHEDULES
@pytest.mark.parametrize(
    ("make", "order"),
    [
        (DDIMSampler, 1),
        (DPMSolverSampler, 2),
        (HeunSampler, 2),
        (lambda s: UniPCSampler(s, order=1), 2),
        (UniPCSampler, 3),
    ],
    ids=["ddim", "dpm++2m", "heun", "unipc-1", "unipc"],
)
def test_the_order_of_convergence(make, order, scheduler):
    coarse, fine = (error(make(scheduler), scheduler, steps) for steps in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


def test_unipc_of_order_three_is_nearer_still():
    errors = [error(UniPCSampler(COSINE, order=order), COSINE, 40) for order in (1, 2, 3)]
    assert errors[0] > 5 * errors[1] > 5 * errors[2]


@SCHEDULES
@pytest.mark.parametrize("name", ["dpm++2m", "heun", "unipc"])
def test_ten_steps_of_higher_order_are_nearer_than_ten_of_ddim(name, scheduler):
    x_T = start(1, 64)

    def miss(name, steps):
        x_0 = walked(built(name, scheduler), gaussian(scheduler), x_T, steps)[-1].x_s
        return float((x_0 - exact_gaussian(scheduler, x_T)).abs().max())

    assert miss(name, 10) < 0.8 * miss("ddim", 10)
    assert miss(name, 100) < 0.2 * miss("ddim", 100)


def test_heuns_first_step_out_of_pure_noise_is_eulers():
    """The trapezoid over sigma from 20,000 down to 13 would add 17 times the noise that is left."""
    x_T = start(2, 5)
    heun, ddim = (next(s(COSINE).steps(gaussian(COSINE), x_T, 20)) for s in (HeunSampler, DDIMSampler))
    torch.testing.assert_close(heun.x_s, ddim.x_s)


def test_every_step_of_heun_is_karras_algorithm():
    """Algorithm 2 as it stands, in x / sqrt(alpha_bar)."""
    for step in walked(HeunSampler(LINEAR), mixture(LINEAR), start(2, 5), 12):
        a_t, a_s = LINEAR.alpha_bar_at(torch.tensor([step.t, step.s])).tolist()
        sigma_t, sigma_s = (math.sqrt(1 / a - 1) for a in (a_t, a_s))
        y = step.x_t / math.sqrt(a_t)
        slope = (y - step.x_0) / sigma_t
        moved = y + (sigma_s - sigma_t) * slope
        if sigma_s > 0:
            again = mixture(LINEAR)(moved * math.sqrt(a_s), torch.tensor([step.s] * 2)).x_0
            moved = y + (sigma_s - sigma_t) * (slope + (moved - again) / sigma_s) / 2
        torch.testing.assert_close(step.x_s, moved * math.sqrt(a_s))


@pytest.mark.parametrize("name", [name for name in NAMES if built(name, COSINE).draws_noise])
def test_samplers_that_draw_noise_reproduce_mean_and_variance(name):
    noise = PictureNoise(range(2), "test")
    *_, last = built(name, COSINE).steps(gaussian(COSINE), noise((2, 20_000)), 200, noise=noise)
    assert float(last.x_s.mean()) == pytest.approx(MU, abs=0.01)
    assert float(last.x_s.std()) == pytest.approx(STD, rel=0.025)


# The grid


@settings(max_examples=60, deadline=None)
@given(T=st.integers(1, 1500), part=st.floats(0, 1), schedule=st.sampled_from(["cosine", "linear"]))
def test_log_snr_spacing_falls_strictly_from_the_noisiest_timestep(T, part, schedule):
    steps = 1 + round(part * (T - 1))
    rows = grid(NoiseScheduler(T, schedule=schedule), steps, "logsnr")
    assert len(rows) == steps
    assert rows[0] == T - 1
    assert all(T > t > s >= -1 for t, s in walk(rows))


def test_log_snr_spacing_is_even_between_its_first_and_last_step():
    rows = torch.tensor(grid(COSINE, 10, "logsnr")[1:])
    log_snr = torch.logit(COSINE.alpha_bar_at(rows))
    assert log_snr.diff().tolist() == pytest.approx([4 * math.log(20) / 9] * 8, rel=1e-3)
    assert float(log_snr[-1]) == pytest.approx(2 * math.log(20), rel=1e-4)


def test_a_table_of_ones_own_may_be_short_of_noise():
    clean = NoiseScheduler.from_alpha_bar([0.999, 0.998, 0.997])
    assert grid(clean, 2, "logsnr") == (2, 0)


def test_timesteps_are_found_back_from_their_log_snr():
    for scheduler in (COSINE, LINEAR, NoiseScheduler(30)):
        t = torch.linspace(0, scheduler.T - 1, 77, dtype=torch.float64)
        found = scheduler.timestep_at(torch.logit(scheduler.alpha_bar_at(t)))
        torch.testing.assert_close(found, t, rtol=0, atol=1e-6)
    ends = COSINE.timestep_at(torch.tensor([-1e3, 1e3], dtype=torch.float64))
    assert ends.tolist() == [999, 0]
    assert NoiseScheduler(1).timestep_at(torch.zeros(2, dtype=torch.float64)).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["dpm++2m", "heun", "unipc"])
def test_log_snr_spacing_brings_few_steps_nearer(name):
    x_T = start(1, 64)
    low, high = (torch.logit(COSINE.alpha_bar[[-1, 0]]) / 2).tolist()
    exact = exact_ode(x_T, low, high, rows=800, std=0.1)

    def miss(spacing):
        *_, step = built(name, COSINE).steps(mixture(COSINE, std=0.1), x_T, 10, spacing=spacing)
        return float((step.x_s - exact).square().mean())

    assert miss("logsnr") < 0.5 * miss("trailing")


def test_spacings_need_their_table():
    assert grid(COSINE, 5, "leading") == spaced(1000, 5, "leading")
    with pytest.raises(UsageError, match="'logsnr'"):
        spaced(1000, 5, "logsnr")
    for steps in (0, 1001):
        with pytest.raises(UsageError, match=f"from 1 to T = 1000, got {steps}"):
            grid(COSINE, steps, "logsnr")


# What holds for all


@EVERY
def test_the_walk_reports_itself_and_ends_clean(name):
    steps = walked(built(name, COSINE), gaussian(COSINE), start(2, 3, dtype=torch.float32), 4)
    assert [(s.index, s.total, s.t, s.s) for s in steps] == [
        (0, 4, 999, 749), (1, 4, 749, 499), (2, 4, 499, 249), (3, 4, 249, -1),
    ]  # fmt: skip
    assert all(step.x_s is following.x_t for step, following in pairwise(steps))
    assert all(step.x_s.dtype == torch.float32 for step in steps)
    torch.testing.assert_close(steps[-1].x_s, steps[-1].x_0, atol=1e-6, rtol=0)


@EVERY
def test_one_step_gives_the_first_guess(name):
    x_T = start(1, 3)
    (step,) = walked(built(name, COSINE), gaussian(COSINE), x_T, 1)
    torch.testing.assert_close(step.x_s, gaussian(COSINE)(x_T, torch.tensor([999])).x_0)


@EVERY
def test_every_sampler_walks_real_timesteps_and_the_longest_grid(name):
    steps = walked(built(name, COSINE), gaussian(COSINE), start(1, 3), 3, timesteps=[998.5, 300.25, 17])
    assert [step.t for step in steps] == [998.5, 300.25, 17]
    short = NoiseScheduler(30)
    ours = built(name, short)
    assert walked(ours, gaussian(short), start(1, 3), 30)[-1].x_s.isfinite().all()
    with pytest.raises(UsageError, match="from 1 to T = 30, got 31"):
        walked(ours, gaussian(short), start(1, 3), 31)


@EVERY
def test_no_gradient_is_recorded(name):
    x_T = start(2, 3).requires_grad_()
    assert not walked(built(name, COSINE), gaussian(COSINE), x_T, 3)[-1].x_s.requires_grad
    assert torch.is_grad_enabled()


@EVERY
def test_arguments_are_checked_at_the_call(name):
    ours, x_T = built(name, COSINE), start(1, 3)
    if ours.takes_eta:
        assert ours.steps(gaussian(COSINE), x_T, 3, eta=0.5, noise=torch.zeros)
    else:
        with pytest.raises(UsageError, match=f"{name.replace('+', '.')} takes no eta, got 0.5: .*ddim"):
            ours.steps(gaussian(COSINE), x_T, 3, eta=0.5, noise=torch.zeros)
    if ours.draws_noise:
        with pytest.raises(UsageError, match="adds noise at every step; pass noise="):
            ours.steps(gaussian(COSINE), x_T, 3)
    with pytest.raises(UsageError, match="fall strictly"):
        ours.steps(gaussian(COSINE), x_T, 2, timesteps=[5, float("nan")], noise=torch.zeros)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniPCSampler(COSINE, order=4), "order must be 1, 2 or 3, got 4"),
        (lambda: DDPMSampler(COSINE, eps_mean_square=torch.ones(5)), "a row for each of 1000 timesteps, got 5"),
        (lambda: sampler("ddpm-analytic", COSINE).steps(gaussian(COSINE), start(1, 3), 3), "^the model has no table"),
    ],
)
def test_samplers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
