import math
from itertools import pairwise

import diffusers
import pytest
import torch

from dalle_2.errors import UsageError
from dalle_2.sampling.ddim_sampler import DDIMSampler, DiffusionModel
from dalle_2.sampling.denoiser import Denoised, to_denoiser
from dalle_2.sampling.guidance import threshold
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.noise_scheduler import NoiseScheduler

COSINE, LINEAR = NoiseScheduler(), NoiseScheduler(schedule="linear")
MU, STD = 0.3, 0.5
PREDICTION_TYPES = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}


def oracle(scheduler):
    """The exact denoiser of data drawn from N(MU, STD^2): E[x_0 | x_t]."""

    def denoise(x, t):
        a = scheduler.alpha_bar[t].view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return Denoised(MU + a.sqrt() * STD**2 / (a * STD**2 + 1 - a) * (x - a.sqrt() * MU))

    return denoise


def start(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def last(steps):
    *_, step = steps
    return step.x_s


# Against the known answer of Gaussian data


def exact_solution(scheduler, x_T):
    """Along the probability-flow ODE a Gaussian keeps every sample at its own quantile."""
    a = float(scheduler.alpha_bar[-1])
    return MU + STD * (x_T - math.sqrt(a) * MU) / math.sqrt(a * STD**2 + 1 - a)


@pytest.mark.parametrize("scheduler", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_ddim_converges_to_the_exact_ode_and_the_error_halves_when_steps_double(scheduler):
    x_T = start(1, 64)
    exact = exact_solution(scheduler, x_T)
    errors = []
    for steps in (50, 100, 200, 500):
        x = last(DDIMSampler(scheduler).steps(oracle(scheduler), x_T, steps))
        errors.append(float((x - exact).abs().max()))
    assert errors[3] < 0.01
    for i in (0, 1):
        assert 1.8 < errors[i] / errors[i + 1] < 2.2


def test_every_step_of_a_gaussian_walk_is_the_closed_form():
    """x_s = A x_t + B by hand from eq. 12, on a walk with jumps of different lengths."""
    scheduler, x_T = LINEAR, start(2, 5)
    for step in DDIMSampler(scheduler).steps(oracle(scheduler), x_T, 4, timesteps=[999, 400, 390, 7]):
        a_t, a_s = (
            float(scheduler.alpha_bar[step.t]),
            1.0 if step.s == -1 else float(scheduler.alpha_bar[step.s]),
        )
        eps = (step.x_t - math.sqrt(a_t) * step.x_0) / math.sqrt(1 - a_t)
        torch.testing.assert_close(step.x_s, math.sqrt(a_s) * step.x_0 + math.sqrt(1 - a_s) * eps)


@pytest.mark.parametrize(("eta", "steps"), [(0.5, 250), (1.0, 1000)])
def test_eta_reproduces_the_variance_of_the_data(eta, steps):
    noise = PictureNoise(range(2), "test")
    x = last(DDIMSampler(COSINE).steps(oracle(COSINE), noise((2, 20_000)), steps, eta=eta, noise=noise))
    assert float(x.mean()) == pytest.approx(MU, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, rel=0.02)


def test_eta_one_follows_the_recursion_of_its_variance_at_every_step():
    """With a linear denoiser Var(x_s) = A^2 Var(x_t) + posterior variance, A from DDPM's eq. 7."""
    noise, variance = PictureNoise(range(2), "test"), 1.0
    for step in DDIMSampler(LINEAR).steps(oracle(LINEAR), noise((2, 20_000)), 20, eta=1, noise=noise):
        t, s = torch.tensor([step.t]), torch.tensor([step.s])
        ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        x_0 = oracle(LINEAR)(ends, t.repeat(2)).x_0
        low, high = LINEAR.posterior_mean(x_0, ends, t.repeat(2), s.repeat(2)).flatten().tolist()
        variance = (high - low) ** 2 * variance + float(LINEAR.posterior_variance(t, s))
        assert float(step.x_s.var()) == pytest.approx(variance, rel=0.03)


# Against diffusers


def network(scheduler, target):
    """Some smooth network, right about nothing, predicting in the units of its target."""

    def predict(x, t):
        return torch.tanh(1.3 * x + 0.2) * (0.5 + t.view(-1, 1, 1, 1) / 1000)

    return predict, to_denoiser(predict, scheduler, target)


def ddim_peer(scheduler, target, spacing):
    peer = diffusers.DDIMScheduler(
        num_train_timesteps=scheduler.T,
        trained_betas=scheduler.betas.tolist(),
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
        prediction_type=PREDICTION_TYPES[target],
    )
    peer.alphas_cumprod = scheduler.alpha_bar  # it would round our float64 table to float32
    return peer


@pytest.mark.parametrize("scheduler", [COSINE, LINEAR], ids=["cosine", "linear"])
@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_every_step_equals_diffusers(scheduler, target, spacing, eta):
    for steps in (5, 20, 50):
        peer = ddim_peer(scheduler, target, spacing)
        peer.set_timesteps(steps)
        predict, denoiser = network(scheduler, target)
        noise, same = PictureNoise([1, 2], "a"), PictureNoise([1, 2], "a")
        x_T = start(2, 3, 4, 4)
        ours = DDIMSampler(scheduler).steps(denoiser, x_T, steps, eta=eta, spacing=spacing, noise=noise)
        for step, t in zip(ours, peer.timesteps.tolist(), strict=True):
            assert step.t == t
            variance_noise = same.normal(x_T.shape, dtype=torch.float64) if eta else None
            raw = predict(step.x_t, torch.full((2,), t))
            theirs = peer.step(raw, t, step.x_t, eta=eta, variance_noise=variance_noise)
            torch.testing.assert_close(step.x_s, theirs.prev_sample, rtol=1e-9, atol=1e-5)
            torch.testing.assert_close(step.x_0, theirs.pred_original_sample, rtol=1e-9, atol=1e-5)


@pytest.mark.parametrize("target", ["x_0", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_every_step_equals_diffusers_in_float32(target, spacing):
    peer = ddim_peer(COSINE, target, spacing)
    peer.set_timesteps(50)
    predict, denoiser = network(COSINE, target)
    x_T = start(2, 3, 4, 4, dtype=torch.float32)
    for step in DDIMSampler(COSINE).steps(denoiser, x_T, 50, spacing=spacing):
        assert step.x_s.dtype == torch.float32
        theirs = peer.step(predict(step.x_t, torch.full((2,), step.t)), step.t, step.x_t).prev_sample
        torch.testing.assert_close(step.x_s, theirs, rtol=0, atol=1e-5)


def test_eps_is_read_off_a_clipped_x_0_as_diffusers_does_on_request():
    peer = ddim_peer(COSINE, "eps", "trailing")
    peer.register_to_config(clip_sample=True)
    peer.set_timesteps(10)
    predict, denoiser = network(COSINE, "eps")
    for step in DDIMSampler(COSINE).steps(threshold(denoiser), start(2, 3, 4, 4), 10):
        raw = predict(step.x_t, torch.full((2,), step.t))
        theirs = peer.step(raw, step.t, step.x_t, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(step.x_s, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheduler", [COSINE, LINEAR], ids=["cosine", "linear"])
@pytest.mark.parametrize("steps", [10, 250])
def test_eta_one_is_diffusers_ddpm_posterior(scheduler, steps):
    peer = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        trained_betas=scheduler.betas.tolist(),
        clip_sample=False,
        variance_type="fixed_small",
        timestep_spacing="trailing",
        prediction_type="sample",
    )
    peer.alphas_cumprod = scheduler.alpha_bar
    peer.set_timesteps(steps)
    predict, denoiser = network(scheduler, "x_0")
    ours, same = (torch.Generator().manual_seed(5) for _ in range(2))

    def noise(shape):
        return torch.randn(shape, generator=ours, dtype=torch.float64)

    for step in DDIMSampler(scheduler).steps(denoiser, start(2, 3, 4, 4), steps, eta=1, noise=noise):
        raw = predict(step.x_t, torch.full((2,), step.t))
        theirs = peer.step(raw, step.t, step.x_t, generator=same).prev_sample
        torch.testing.assert_close(step.x_s, theirs, rtol=0, atol=1e-5)


# The walk


def test_the_walk_reports_itself_and_ends_at_the_last_guess():
    walked = list(DDIMSampler(COSINE).steps(oracle(COSINE), start(2, 3), 4, spacing="leading"))
    assert [(s.index, s.total, s.t, s.s) for s in walked] == [
        (0, 4, 750, 500),
        (1, 4, 500, 250),
        (2, 4, 250, 0),
        (3, 4, 0, -1),
    ]
    for step, following in pairwise(walked):
        assert step.x_s is following.x_t
    torch.testing.assert_close(walked[-1].x_s, walked[-1].x_0)


def test_a_walk_can_be_left_at_any_step():
    calls = []

    def counting(x, t):
        calls.append(t.tolist())
        return oracle(COSINE)(x, t)

    walked = DDIMSampler(COSINE).steps(counting, start(2, 3), 50)
    next(walked), next(walked)
    assert calls == [[999, 999], [979, 979]]


def test_no_gradient_is_recorded():
    x_T = start(1, 3).requires_grad_()
    assert not last(DDIMSampler(COSINE).steps(oracle(COSINE), x_T, 3)).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_one_step_gives_the_first_guess(spacing):
    x_T = start(1, 3)
    found = last(DDIMSampler(COSINE).steps(oracle(COSINE), x_T, 1, spacing=spacing))
    torch.testing.assert_close(found, oracle(COSINE)(x_T, torch.tensor([999])).x_0)


def test_a_half_precision_start_is_walked_in_float32():
    step = next(DDIMSampler(COSINE).steps(oracle(COSINE), start(1, 3, dtype=torch.bfloat16), 3))
    assert step.x_t.dtype == step.x_s.dtype == torch.float32


def test_a_learned_variance_does_not_disturb_ddim():
    def with_variance(x, t):
        return Denoised(oracle(COSINE)(x, t).x_0, variance=torch.zeros_like(x))

    x_T = start(1, 3)
    sampler = DDIMSampler(COSINE)
    assert torch.equal(
        last(sampler.steps(with_variance, x_T, 5)), last(sampler.steps(oracle(COSINE), x_T, 5))
    )


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (0, {}, "from 1 to T = 1000, got 0"),
        (-1, {}, "from 1 to T = 1000, got -1"),
        (1001, {}, "from 1 to T = 1000, got 1001"),
        (10, {"eta": -0.1}, r"eta must lie in \[0, 1\].*got -0.1"),
        (10, {"eta": 1.1}, r"eta must lie in \[0, 1\].*got 1.1"),
        (10, {"eta": float("nan")}, r"eta must lie in \[0, 1\].*got nan"),
        (10, {"eta": 0.5}, "pass noise="),
        (2, {"timesteps": [5]}, "1 timesteps for 2 steps"),
        (1, {"timesteps": [1000]}, "fall strictly"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(steps, options, message):
    with pytest.raises(UsageError, match=message):
        DDIMSampler(COSINE).steps(oracle(COSINE), start(1, 3), steps, **options)


# Sampling a model


class Model:
    """Conditions the oracle: shifts its guess by the mean of z_cond, times the guidance scale."""

    kind = "toy"

    def __init__(self, scheduler=COSINE):
        self.noise_scheduler, self.asked = scheduler, []

    def denoiser(self, z_cond, **options):
        self.asked.append(options)
        shift = z_cond.mean(1).view(-1, 1, 1, 1) * options.get("guidance", 1.0)
        return lambda x, t: Denoised(oracle(self.noise_scheduler)(x, t).x_0 + shift)


Z, SHAPE = start(4, 512, dtype=torch.float32), (4, 3, 8, 8)


def test_the_users_call_works_positionally():
    torch.manual_seed(0)
    x = DDIMSampler(COSINE).sample(Model(), Z, SHAPE, 5)
    assert x.shape == SHAPE
    assert x.dtype == torch.float32
    assert not torch.equal(x, DDIMSampler(COSINE).sample(Model(), Z, SHAPE, 5))
    torch.manual_seed(0)
    assert torch.equal(x, DDIMSampler(COSINE).sample(Model(), Z, SHAPE, 5))
    assert isinstance(Model(), DiffusionModel)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_picture_alone_is_the_picture_of_the_batch(eta):
    sampler = DDIMSampler(COSINE)
    batch = sampler.sample(Model(), Z, SHAPE, 5, seeds=[7, 8, 9, 10], eta=eta)
    alone = sampler.sample(Model(), Z[2:3], (1, *SHAPE[1:]), 5, seeds=[9], eta=eta)
    torch.testing.assert_close(batch[2:3], alone)
    assert torch.equal(batch, sampler.sample(Model(), Z, SHAPE, 5, seeds=[7, 8, 9, 10], eta=eta))


def test_start_and_generators_replace_what_is_drawn():
    sampler, x_T = DDIMSampler(COSINE), start(*SHAPE, dtype=torch.float32)
    given = sampler.sample(Model(), Z, SHAPE, 5, start=x_T)
    torch.testing.assert_close(given, last(sampler.steps(Model().denoiser(Z), x_T, 5)))
    generators = [torch.Generator().manual_seed(k) for k in range(4)]
    x_T = torch.stack([torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(k)) for k in range(4)])
    drawn = sampler.sample(Model(), Z, SHAPE, 5, generators=generators)
    assert torch.equal(drawn, sampler.sample(Model(), Z, SHAPE, 5, start=x_T))


def test_a_models_own_spacing_holds_unless_another_is_asked_for():
    model, seen = Model(), []
    model.spacing = "leading"
    for spacing in (None, "linspace"):
        DDIMSampler(COSINE).sample(
            model, Z, SHAPE, 4, spacing=spacing, on_step=lambda step: seen.append(step.t)
        )
    assert seen == [750, 500, 250, 0, 999, 666, 333, 0]


def test_guidance_is_handed_on_only_where_given():
    model = Model()
    plain = DDIMSampler(COSINE).sample(model, Z, SHAPE, 3, seeds=range(4))
    guided = DDIMSampler(COSINE).sample(model, Z, SHAPE, 3, seeds=range(4), guidance=3.0)
    assert model.asked == [{}, {"guidance": 3.0}]
    assert not torch.equal(plain, guided)


def test_another_noise_table_is_refused_and_both_are_named():
    with pytest.raises(UsageError, match=r"\(cosine, T = 1000\).*\(linear, T = 500\)"):
        DDIMSampler(COSINE).sample(Model(NoiseScheduler(500, schedule="linear")), Z, SHAPE, 5)
    same = NoiseScheduler.from_betas(COSINE.betas)
    assert DDIMSampler(same).sample(Model(), Z, SHAPE, 2).shape == SHAPE


@pytest.mark.parametrize(
    ("shape", "steps", "options", "message"),
    [
        (SHAPE, 0, {}, "from 1 to T"),
        (SHAPE, 5, {"eta": 2}, "eta must lie"),
        ((3, 3, 8, 8), 5, {}, "4 rows of z_cond"),
        ((), 5, {}, "4 rows of z_cond"),
        (SHAPE, 5, {"seeds": [1]}, "1 seeds or generators for 4 rows"),
        (SHAPE, 5, {"seeds": [1] * 4, "generators": [torch.Generator()] * 4}, "both seeds and generators"),
        (SHAPE, 5, {"start": torch.zeros(4, 3, 4, 4)}, "start has shape"),
    ],
)
def test_bad_samples_are_refused(shape, steps, options, message):
    with pytest.raises(UsageError, match=message):
        DDIMSampler(COSINE).sample(Model(), Z, shape, steps, **options)
