import json

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_2.config import parse
from dalle_2.errors import ConfigError, UsageError
from dalle_2.sampling.denoiser import convert, to_denoiser
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.noise_scheduler import NoiseScheduler, NoiseSchedulerConfig
from dalle_2.sampling.spacing import check_timesteps, spaced, walk

TABLES = {
    "cosine": NoiseScheduler(),
    "linear": NoiseScheduler(schedule="linear"),
    "short": NoiseScheduler(30),
    "explicit": NoiseScheduler.from_betas([0.1, 0.2, 0.3]),
}
tables = pytest.mark.parametrize("scheduler", TABLES.values(), ids=TABLES.keys())


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The tables


def test_linear_is_ddpms_table_at_1000_steps():
    peer = diffusers.DDPMScheduler(beta_schedule="linear")
    ours = TABLES["linear"]
    assert ours.betas.dtype == torch.float64
    torch.testing.assert_close(ours.betas.float(), peer.betas)
    torch.testing.assert_close(ours.alpha_bar.float(), peer.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_cosine_is_the_published_table():
    peer = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(TABLES["cosine"].betas.float(), peer.betas, rtol=1e-3, atol=1e-7)
    assert float(TABLES["cosine"].betas.max()) == 0.999


def test_linear_is_scaled_so_that_few_timesteps_end_as_noisy_as_many():
    ends = [float(NoiseScheduler(T, schedule="linear").alpha_bar[-1]) for T in (250, 1000, 4000)]
    np.testing.assert_allclose(np.log(ends), np.log(ends[1]), rtol=0.03)


@pytest.mark.parametrize("T", [1, 2, 5, 20])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_very_short_tables_stay_tables(T, schedule):
    scheduler = NoiseScheduler(T, schedule=schedule)
    assert scheduler.alpha_bar.shape == (T,)
    assert bool((scheduler.betas > 0).all())
    assert bool((scheduler.betas < 1).all())


@tables
def test_the_three_tables_belong_together(scheduler):
    t = torch.arange(scheduler.T)
    beta, alpha, alpha_bar = scheduler.get_beta_t(t), scheduler.get_alpha_t(t), scheduler.get_alpha_bar_t(t)
    assert beta.shape == t.shape
    assert beta.dtype == torch.float32
    torch.testing.assert_close(alpha, 1 - beta)
    torch.testing.assert_close(alpha_bar, alpha.double().cumprod(0).float(), rtol=1e-4, atol=1e-7)


def test_eta_plays_no_part_in_the_forward_process():
    t = torch.tensor([0, 7, 999])
    scheduler = TABLES["cosine"]
    for get in (scheduler.get_beta_t, scheduler.get_alpha_t, scheduler.get_alpha_bar_t):
        assert torch.equal(get(t), get(t, 0.5))
        assert torch.equal(get(t), get(t, eta=1))


@pytest.mark.parametrize("wrong", [[-1], [1000], [3, -1000]])
def test_public_rows_refuse_t_outside_the_table(wrong):
    for name in ("get_beta_t", "get_alpha_t", "get_alpha_bar_t"):
        with pytest.raises(UsageError, match=rf"t must lie in 0 \.\.\. 999 .*got {wrong[-1]}"):
            getattr(TABLES["cosine"], name)(torch.tensor(wrong))


@pytest.mark.parametrize("t", [torch.tensor([1.0]), torch.tensor([True])])
def test_public_rows_refuse_what_is_no_integer(t):
    with pytest.raises(UsageError, match="tensor of integers"):
        TABLES["cosine"].get_alpha_bar_t(t)


# Real-valued timesteps


@tables
def test_whole_timesteps_read_the_rows_themselves_and_minus_one_is_clean(scheduler):
    t = torch.arange(-1, scheduler.T)
    expected = torch.cat([torch.ones(1, dtype=torch.float64), scheduler.alpha_bar])
    assert torch.equal(scheduler.alpha_bar_at(t), expected)
    assert torch.equal(scheduler.alpha_bar_at(t.double()), expected)


@tables
def test_between_rows_alpha_bar_falls_strictly(scheduler):
    fine = scheduler.alpha_bar_at(
        torch.linspace(-1, scheduler.T - 1, 4 * scheduler.T + 1, dtype=torch.float64)
    )
    assert bool((fine.diff() < 0).all())


def test_between_rows_the_log_snr_is_linear():
    a = TABLES["linear"].alpha_bar_at(torch.tensor([10.0, 10.25, 11.0]))
    low, at, high = torch.logit(a).tolist()
    assert at == pytest.approx(0.75 * low + 0.25 * high, rel=1e-9)


@pytest.mark.parametrize("t", [-1.001, 999.5, float("nan")])
def test_real_timesteps_outside_the_table_are_refused(t):
    with pytest.raises(UsageError, match="t must lie in -1"):
        TABLES["cosine"].alpha_bar_at(torch.tensor([t]))


# Equality and settings


def test_equality_is_of_the_table_not_of_its_description():
    cosine = TABLES["cosine"]
    assert cosine == NoiseScheduler(1000, schedule="cosine")
    assert cosine == NoiseScheduler.from_betas(cosine.betas)
    assert cosine == NoiseScheduler.from_alpha_bar(cosine.alpha_bar)
    assert hash(cosine) == hash(NoiseScheduler.from_betas(cosine.betas))
    assert cosine != TABLES["linear"]
    assert cosine != NoiseScheduler(999)
    assert cosine != "cosine"
    assert TABLES["linear"] != NoiseScheduler(schedule="linear", beta_end=0.0201)


@tables
def test_a_table_survives_its_settings_as_json(scheduler):
    stored = json.loads(json.dumps(scheduler.config.model_dump()))
    again = NoiseScheduler.from_config(parse(NoiseSchedulerConfig, stored))
    assert torch.equal(again.betas, scheduler.betas)
    assert again.config == scheduler.config


def test_a_table_is_named_in_words():
    assert repr(TABLES["cosine"]) == "NoiseScheduler(cosine, T = 1000)"
    assert NoiseScheduler(10, schedule="linear", beta_end=0.01).described == "linear 0.0001 to 0.01, T = 10"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseScheduler(0), "T"),
        (lambda: NoiseScheduler(3, betas=[0.1, 0.2]), "2 betas for T = 3"),
        (lambda: NoiseScheduler.from_betas([0.1, 1.0]), "between 0 and 1"),
        (lambda: NoiseScheduler(2, schedule="linear", betas=[0.1, 0.2]), "belong to schedule 'explicit'"),
        (lambda: NoiseScheduler(schedule="explicit"), "belong to schedule 'explicit'"),
        (lambda: NoiseScheduler(schedule="linear", beta_start=0.0), "beta_start"),
    ],
)
def test_nonsense_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_betas_that_lose_all_signal_or_all_noise_are_refused():
    for betas in ([0.999] * 200, [1e-18]):
        with pytest.raises(UsageError, match="alpha_bar must stay between 0 and 1"):
            NoiseScheduler.from_betas(betas)


# Conversions


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(TABLES)), seed=st.integers(0, 10**6), whole=st.booleans())
def test_conversions_undo_one_another(name, seed, whole):
    scheduler = TABLES[name]
    t = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (scheduler.T - 1)
    t = t.round().long() if whole else t
    x_0, eps = normal(seed, 4, 3, 2), normal(seed + 1, 4, 3, 2)
    x_t = scheduler.add_noise(x_0, eps, t)
    values = {"x_0": x_0, "eps": eps, "v": scheduler.v_from(x_0, eps, t)}
    for source, value in values.items():
        for to, expected in values.items():
            found = convert(value, x_t, t, scheduler, source=source, to=to)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_noising_has_the_variances_of_the_forward_process():
    scheduler, t = TABLES["cosine"], torch.full((1,), 400)
    x_t = scheduler.add_noise(2 * torch.ones(1, 200_000), normal(0, 1, 200_000, dtype=torch.float32), t)
    a = float(scheduler.alpha_bar[400])
    assert float(x_t.mean()) == pytest.approx(2 * a**0.5, abs=0.01)
    assert float(x_t.var()) == pytest.approx(1 - a, rel=0.02)


def test_noising_at_minus_one_leaves_clean_data():
    x_0, eps = normal(0, 2, 3), normal(1, 2, 3)
    assert torch.equal(TABLES["cosine"].add_noise(x_0, eps, torch.tensor([-1, -1])), x_0)


def test_noising_equals_diffusers():
    peer = diffusers.DDPMScheduler(beta_schedule="linear")
    x_0, eps, t = normal(0, 3, 3, 4, 4), normal(1, 3, 3, 4, 4), torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        TABLES["linear"].add_noise(x_0, eps, t), peer.add_noise(x_0, eps, t), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        TABLES["linear"].v_from(x_0, eps, t), peer.get_velocity(x_0, eps, t), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_results_come_in_the_dtype_of_x(dtype):
    scheduler, t = TABLES["cosine"], torch.tensor([10, 900])
    x_0, eps = normal(0, 2, 3, dtype=torch.float64), normal(1, 2, 3, dtype=torch.float64)
    x_t = scheduler.add_noise(x_0.to(dtype), eps.to(dtype), t)
    assert x_t.dtype == dtype
    exact = scheduler.add_noise(x_0.to(dtype).double(), eps.to(dtype).double(), t)
    torch.testing.assert_close(x_t, exact.to(dtype))  # one rounding, at the end


@pytest.mark.parametrize("name", ["x_0_from_eps", "eps_from_x_0", "x_0_from_v", "eps_from_v", "v_from"])
def test_conversions_refuse_clean_data_which_has_no_noise_to_read(name):
    with pytest.raises(UsageError, match=r"t must lie in 0 \.\.\. 999"):
        getattr(TABLES["cosine"], name)(normal(0, 1, 2), normal(1, 1, 2), torch.tensor([-1]))


def test_posterior_is_bayes_rule_on_two_gaussians():
    """q(x_s | x_t, x_0) by completing the square of q(x_t | x_s) q(x_s | x_0), for neighbours and jumps."""
    scheduler, x_0, x_t = TABLES["linear"], normal(0, 3, 5), normal(1, 3, 5)
    t, s = torch.tensor([1, 500, 999]), torch.tensor([0, 200, 998])
    a_t, a_s = scheduler.alpha_bar[t].view(-1, 1), scheduler.alpha_bar[s].view(-1, 1)
    ratio = a_t / a_s
    precision = ratio / (1 - ratio) + 1 / (1 - a_s)
    mean = (ratio.sqrt() * x_t / (1 - ratio) + a_s.sqrt() * x_0 / (1 - a_s)) / precision
    torch.testing.assert_close(scheduler.posterior_mean(x_0, x_t, t, s), mean)
    torch.testing.assert_close(scheduler.posterior_variance(t, s), 1 / precision.flatten())


def test_posterior_goes_to_the_step_before_by_default_and_ends_at_x_0():
    scheduler, x_0, x_t = TABLES["cosine"], normal(0, 2, 5), normal(1, 2, 5)
    t = torch.tensor([0, 700])
    assert torch.equal(scheduler.posterior_mean(x_0, x_t, t), scheduler.posterior_mean(x_0, x_t, t, t - 1))
    torch.testing.assert_close(scheduler.posterior_mean(x_0, x_t, t)[0], x_0[0])
    assert float(scheduler.posterior_variance(t)[0]) == 0
    beta = scheduler.betas[700] * (1 - scheduler.alpha_bar[699]) / (1 - scheduler.alpha_bar[700])
    assert float(scheduler.posterior_variance(t)[1]) == pytest.approx(float(beta), rel=1e-9)
    with pytest.raises(UsageError, match="earlier step"):
        scheduler.posterior_variance(t, t)


# Wrapping a network


def test_a_network_in_half_precision_is_converted_in_float32():
    scheduler, t = TABLES["cosine"], torch.tensor([990])
    x_0 = normal(0, 1, 3, 4, 4, dtype=torch.float32)
    eps = normal(1, 1, 3, 4, 4, dtype=torch.float32).bfloat16()
    x_t = scheduler.add_noise(x_0, eps.float(), t)
    answer = to_denoiser(lambda x, t: eps, scheduler, "eps")(x_t, t)
    assert answer.x_0.dtype == torch.float32
    assert answer.variance is None
    torch.testing.assert_close(answer.x_0, x_0, rtol=0, atol=1e-3)


def test_a_learned_variance_is_split_off_as_a_fraction():
    scheduler, t, x_t = TABLES["cosine"], torch.tensor([5]), normal(0, 1, 3, 2, 2)
    raw = torch.cat([x_t, -torch.ones_like(x_t)], dim=1)
    answer = to_denoiser(lambda x, t: raw, scheduler, "x_0", learned_variance=True)(x_t, t)
    assert torch.equal(answer.x_0, x_t)
    assert answer.variance is not None
    assert torch.equal(answer.variance, torch.zeros_like(x_t))


def test_wrong_predictions_are_refused():
    scheduler, t, x_t = TABLES["cosine"], torch.tensor([5]), normal(0, 1, 3, 2, 2)
    with pytest.raises(UsageError, match=r"answered with shape \(1, 1, 2, 2\)"):
        to_denoiser(lambda x, t: x[:, :1], scheduler, "x_0")(x_t, t)
    with pytest.raises(UsageError, match="twice the channels"):
        to_denoiser(lambda x, t: x, scheduler, "x_0", learned_variance=True)(x_t, t)


# Spacing


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("T", [1000, 250, 37])
@pytest.mark.parametrize("steps", [2, 5, 7, 25, 27, 37])
def test_spacings_equal_diffusers(spacing, T, steps):
    peer = diffusers.DDIMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
    peer.set_timesteps(steps)
    assert list(spaced(T, steps, spacing)) == peer.timesteps.tolist()


@settings(max_examples=80, deadline=None)
@given(
    T=st.integers(1, 1500), part=st.floats(0, 1), spacing=st.sampled_from(["trailing", "leading", "linspace"])
)
def test_every_spacing_falls_strictly_and_ends_clean(T, part, spacing):
    steps = 1 + round(part * (T - 1))
    pairs = walk(spaced(T, steps, spacing))
    assert len(pairs) == steps
    assert pairs[-1][1] == -1
    assert all(T > t > s >= -1 for t, s in pairs)


def test_one_step_starts_at_the_noisiest_timestep():
    assert {spaced(1000, 1, spacing) for spacing in ("trailing", "leading", "linspace")} == {(999,)}


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(UsageError, match=rf"from 1 to T = 1000, got {steps}"):
        spaced(1000, steps)


@pytest.mark.parametrize("timesteps", [[], [1000], [5, 5], [3, 4], [2, -1]])
def test_timesteps_must_fall_within_the_table(timesteps):
    with pytest.raises(UsageError, match="fall strictly within 999"):
        check_timesteps(1000, timesteps)


# Noise a picture


def test_a_picture_keeps_its_noise_in_any_batch():
    batch, alone = PictureNoise([4, 5, 6, 7], "decoder"), PictureNoise([6], "decoder")
    for shape in ((3, 8, 8), (2,)):
        assert torch.equal(batch.normal((4, *shape))[2:3], alone.normal((1, *shape)))


def test_seeds_stages_and_draws_have_streams_of_their_own():
    draws = [
        PictureNoise([seed], stage)((1, 50)) for seed in (0, 1, -1, 2**70) for stage in ("prior", "decoder")
    ]
    twice = PictureNoise([0], "prior")
    draws.append(torch.stack([twice((1, 50)), twice((1, 50))])[1])
    correlation = torch.corrcoef(torch.cat(draws)) - torch.eye(len(draws))
    assert float(correlation.abs().max()) < 0.6


def test_noise_is_the_same_on_every_machine_and_in_every_dtype():
    drawn = PictureNoise([123], "decoder").normal((1, 3))
    torch.testing.assert_close(drawn, torch.tensor([[0.052303, 0.222492, 0.026108]]), rtol=0, atol=1e-6)
    half = PictureNoise([123], "decoder").normal((1, 3), dtype=torch.bfloat16)
    assert torch.equal(half, drawn.bfloat16())


def test_fresh_noise_follows_the_global_seed():
    torch.manual_seed(3)
    one, two = PictureNoise.fresh(2, "prior")((2, 4)), PictureNoise.fresh(2, "prior")((2, 4))
    torch.manual_seed(3)
    assert torch.equal(PictureNoise.fresh(2, "prior")((2, 4)), one)
    assert not torch.equal(one, two)


def test_noise_for_another_number_of_pictures_is_refused():
    with pytest.raises(UsageError, match="with 2 seeds"):
        PictureNoise([1, 2], "prior").normal((3, 4))
