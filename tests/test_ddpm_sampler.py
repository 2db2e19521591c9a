"""Ancestral sampling and its variances: fixed, learned, analytic."""

import math

import diffusers
import pytest
import torch
from exact_denoisers import COSINE, LINEAR, MU, STD, gaussian, gaussian_table, start

from dalle_2 import DDIMSampler, NoiseScheduler
from dalle_2.errors import UsageError
from dalle_2.sampling.ddpm_sampler import FAINT, DDPMSampler, analytic_variance
from dalle_2.sampling.denoiser import Denoised, to_denoiser
from dalle_2.sampling.jump import Jump
from dalle_2.sampling.mean_squares import eps_mean_square
from dalle_2.sampling.noise import PictureNoise

SCHEDULES = pytest.mark.parametrize("scheduler", [COSINE, LINEAR], ids=["cosine", "linear"])


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_the_smallest_variance_is_ddims_at_eta_one(spacing):
    noises = [PictureNoise([3, 4], "a") for _ in range(2)]
    ours = DDPMSampler(COSINE).steps(gaussian(COSINE), start(2, 7), 20, noise=noises[0], spacing=spacing)
    theirs = DDIMSampler(COSINE).steps(gaussian(COSINE), start(2, 7), 20, noise=noises[1], spacing=spacing, eta=1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.x_s, b.x_s)


@SCHEDULES
@pytest.mark.parametrize(("t", "s"), [(999, 500), (998, 997), (500, 499), (700, 30), (20, 3), (19, -1)])
def test_the_analytic_variance_is_the_exact_one_of_gaussian_data(scheduler, t, s):
    a_t, a_s = scheduler.alpha_bar_at(torch.tensor([t, s])).tolist()
    v_t, v_s = (a * STD**2 + 1 - a for a in (a_t, a_s))
    exact = v_s - a_t / a_s * v_s**2 / v_t  # x_t = sqrt(a_t / a_s) x_s + noise
    mean_square = float(gaussian_table(scheduler)[t])
    assert analytic_variance(Jump.of(scheduler, t, s), mean_square) == pytest.approx(exact, rel=1e-6)


def test_with_the_analytic_variance_even_few_steps_keep_the_variance():
    """Five steps: before the last one, x_t should have its own variance."""

    def miss(variance):
        noise, table = PictureNoise(range(2), "test"), gaussian_table(COSINE)
        ours = DDPMSampler(COSINE, variance=variance, eps_mean_square=table)
        *_, last = ours.steps(gaussian(COSINE), noise((2, 20_000)), 5, noise=noise)
        a = float(COSINE.alpha_bar[last.t])
        return abs(float(last.x_t.var()) / (a * STD**2 + 1 - a) - 1)

    assert miss("analytic") < 0.02
    assert miss("smallest") > 0.05


def test_estimates_that_make_no_sense_are_held_within_bounds():
    for t, s in ((999, 900), (400, 100), (50, 40)):
        jump = Jump.of(COSINE, t, s)
        assert analytic_variance(jump, 1.3) == pytest.approx(jump.posterior_variance)
        unknown = jump.posterior_variance + jump.x_0_in_posterior**2 * min(jump.now.sigma**2, 1)
        assert analytic_variance(jump, -0.1) == pytest.approx(unknown)
    noisiest = Jump.of(COSINE, 999, 980)  # where an error of a thousandth would stand for a huge x_0
    assert analytic_variance(noisiest, 0.999) < noisiest.posterior_variance + 0.001


def test_the_noise_of_the_last_steps_stays_faint():
    ours = DDPMSampler(COSINE, variance="analytic", eps_mean_square=torch.zeros(1000))
    silent, ones = lambda x, t: Denoised(torch.zeros_like(x)), torch.ones
    first, faint, last = ours.steps(silent, torch.zeros(1, 2), 3, timesteps=[60, 20, 5], noise=ones)
    assert float(first.x_s.mean()) > 3 * FAINT
    mean = float(faint.x_s.mean()) - Jump.of(COSINE, 20, 5).kept_by_posterior * float(faint.x_t.mean())
    assert mean * math.sqrt(2 / math.pi) == pytest.approx(FAINT, rel=1e-4)
    assert float(last.x_s.abs().max()) == 0


def test_the_mean_squares_are_estimated():
    batches = [(gaussian(COSINE), MU + STD * start(32, 256, seed=seed, dtype=torch.float32)) for seed in (1, 2)]
    table = eps_mean_square(batches, COSINE, torch.Generator().manual_seed(3))
    assert table.shape == (1000,)
    torch.testing.assert_close(table, gaussian_table(COSINE), rtol=0, atol=0.02)
    few = NoiseScheduler(3)
    torch.testing.assert_close(
        eps_mean_square([(gaussian(few), batches[0][1])], few, torch.Generator().manual_seed(3)),
        gaussian_table(few), rtol=0, atol=0.02,
    )  # fmt: skip
    with pytest.raises(UsageError, match="at least one batch"):
        eps_mean_square([], COSINE, torch.Generator())


@SCHEDULES
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize(
    ("variance", "theirs"),
    [("learned", "learned_range"), ("smallest", "fixed_small"), ("largest", "fixed_large")],
)
def test_every_step_of_ddpm_equals_diffusers(scheduler, spacing, variance, theirs):
    learned = variance == "learned"
    peer = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        trained_betas=scheduler.betas.tolist(),
        clip_sample=False,
        variance_type=theirs,
        timestep_spacing=spacing,
        prediction_type="sample",
    )
    peer.alphas_cumprod = scheduler.alpha_bar  # it would round our float64 table to float32
    peer.set_timesteps(20)

    def predict(x, t):
        """Some smooth network, right about nothing."""
        x_0 = torch.tanh(1.3 * x + 0.2) * (0.5 + t.view(-1, 1, 1, 1) / 1000)
        return torch.cat([x_0, torch.sin(3 * x)], dim=1) if learned else x_0

    denoiser = to_denoiser(predict, scheduler, "x_0", learned_variance=learned)
    ours, same = (torch.Generator().manual_seed(5) for _ in range(2))

    def noise(shape):
        return torch.randn(shape, generator=ours, dtype=torch.float64)

    walked = DDPMSampler(scheduler, variance=variance)
    for step in walked.steps(denoiser, start(2, 3, 4, 4), 20, noise=noise, spacing=spacing):
        raw = predict(step.x_t, torch.full((2,), step.t))
        answer = peer.step(raw, step.t, step.x_t, generator=same).prev_sample
        if step.s >= 0 or step.t == 0:  # on a last step from above 0 theirs adds noise to the result
            torch.testing.assert_close(step.x_s, answer, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("target", "asked", "seen"), [
    ("x_0", 9.0, 1.0), ("x_0", -9.0, 0.0), ("x_0", 0.5, 0.75), ("eps", 9.0, 5.0), ("v", -9.0, -4.0),
])  # fmt: skip
def test_a_learned_variance_stays_within_the_bounds_where_x_0_is_predicted(target, asked, seen):
    def predict(x, t):
        return torch.cat([x, torch.full_like(x, asked)], dim=1)

    answer = to_denoiser(predict, COSINE, target, learned_variance=True)(start(2, 7), torch.tensor([500, 10]))
    assert answer.variance.unique() == seen


def test_a_network_without_a_learned_variance_is_sampled_with_the_smallest():
    noises = [PictureNoise([3, 4], "a") for _ in range(2)]
    learned, smallest = (
        list(DDPMSampler(COSINE, variance=v).steps(gaussian(COSINE), start(2, 7), 5, noise=noise))[-1].x_s
        for v, noise in zip(("learned", "smallest"), noises, strict=True)
    )
    assert torch.equal(learned, smallest)
