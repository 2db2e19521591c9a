"""The learned variance: its bound, its gradients, and what sampling sees of it."""

import math

import pytest
import torch
from torch import Tensor
from training_rig import DIM, T, awake, decoder, generator, noise

from dalle_2.models.decoder import Decoder
from dalle_2.models.hybrid_loss import log_variance_limits, variational_bound
from dalle_2.sampling.noise_scheduler import NoiseScheduler

SCHEDULER = NoiseScheduler(100)


def learning(**changes: object) -> Decoder:
    return awake(decoder({"out_channels": 6}, learned_variance=True, **changes))


def test_the_bound_is_the_divergence_of_two_gaussians() -> None:
    t = torch.tensor([5, 40, 99])
    x_0, x_t, guess = noise(3, 2), noise(3, 2, seed=1), noise(3, 2, seed=2)
    share = torch.rand(3, 2, generator=generator())
    bound = variational_bound(x_0, guess, x_t, share, t, SCHEDULER)
    for row in range(3):
        one = t[row : row + 1]
        beta, true = float(SCHEDULER.beta_at(one)), float(SCHEDULER.posterior_variance(one))
        expected = []
        for k in range(2):
            part = float(share[row, k])
            variance = math.exp(part * math.log(beta) + (1 - part) * math.log(true))
            means = [
                float(SCHEDULER.posterior_mean(x[row : row + 1, k : k + 1], x_t[row : row + 1, k : k + 1], one))
                for x in (x_0, guess)
            ]
            p = torch.distributions.Normal(means[0], math.sqrt(true))
            q = torch.distributions.Normal(means[1], math.sqrt(variance))
            expected.append(float(torch.distributions.kl_divergence(p, q)) / math.log(2))
        assert float(bound[row]) == pytest.approx(sum(expected) / 2, rel=1e-3)


def test_at_the_first_timestep_the_bound_is_a_likelihood_of_256_levels() -> None:
    levels = torch.arange(256) / 127.5 - 1
    guess = torch.full((256, 1), 0.1)
    t, share = torch.zeros(256, dtype=torch.long), torch.full((256, 1), 0.5)
    x_t = torch.full((256, 1), 0.12)
    bits = variational_bound(levels[:, None], guess, x_t, share, t, SCHEDULER)
    assert float((2 ** -bits.double()).sum()) == pytest.approx(1, abs=1e-3)
    assert int(bits.argmin()) == int((levels - 0.1).abs().argmin())


def test_the_limits_are_posterior_and_beta() -> None:
    t = torch.tensor([0, 1, 50])
    low, high = log_variance_limits(t, SCHEDULER)
    later = torch.tensor([1, 1, 50])
    assert torch.equal(low, SCHEDULER.posterior_variance(later).log())
    assert torch.equal(high, SCHEDULER.beta_at(t).log())
    assert bool((low <= high).all())


def test_the_bound_teaches_the_variance_and_not_the_mean() -> None:
    guess, share = noise(4, 3, seed=2).requires_grad_(), torch.full((4, 3), 0.4, requires_grad=True)
    t = torch.tensor([3, 30, 60, 90])
    variational_bound(noise(4, 3), guess, noise(4, 3, seed=1), share, t, SCHEDULER).sum().backward()
    assert guess.grad is None
    assert share.grad is not None
    assert bool(share.grad.abs().sum() > 0)


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
def test_the_hybrid_loss_is_the_simple_one_plus_the_bound(target: str) -> None:
    model = learning(target=target)
    batch = {"z_img": noise(5, DIM), "image": noise(5, 3, 8, 8, seed=1).clamp(-1, 1)}
    parts = model.loss(model.noised(batch, generator()))
    weight = 0.001 * T
    total = float(parts["simple"]) + weight * float(parts["bits"])
    assert float(parts["loss"].detach()) == pytest.approx(total, rel=1e-5)
    parts["loss"].backward()
    out = model.network.conv_out.weight.grad
    assert out is not None
    assert bool(out.isfinite().all())


@pytest.mark.parametrize(("sigma_data", "left"), [(None, 0.7), (0.5, 0.9)])
def test_the_bound_falls_when_the_variance_learns(sigma_data: float | None, left: float) -> None:
    """Where x_t already says the best linear guess, an untrained network is closer to what can be reached."""
    torch.manual_seed(0)
    model = learning(sigma_data=sigma_data)
    batch = {"z_img": noise(16, DIM), "image": noise(16, 3, 8, 8, seed=1).clamp(-1, 1)}
    asked = model.noised(batch, generator())
    before = float(model.loss(asked)["bits"])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        model.loss(model.noised(batch, generator(step)))["loss"].backward()
        optimizer.step()
    assert float(model.loss(asked)["bits"]) < left * before


@torch.no_grad()
def test_the_variance_comes_from_the_conditional_branch_at_any_scale() -> None:
    model = learning(clip=None).eval()
    x, t, z = noise(2, 3, 8, 8), torch.tensor([9, 30]), noise(2, DIM, seed=4)
    one, strong = (model.denoiser(z, guidance=scale)(x, t) for scale in (1.0, 7.0))
    assert strong.variance is not None
    assert torch.allclose(strong.variance, one.variance, atol=1e-5)
    assert not torch.allclose(strong.x_0, one.x_0)


@torch.no_grad()
def test_half_precision_leaves_the_bound_finite() -> None:
    model = learning()
    batch = model.noised({"z_img": noise(4, DIM), "image": noise(4, 3, 8, 8).clamp(-1, 1)}, generator())
    with torch.autocast("cpu", torch.bfloat16):
        parts = model.loss(batch | {"t": torch.tensor([0, 1, T - 2, T - 1])})
    values: list[Tensor] = list(parts.values())
    assert all(bool(value.isfinite()) for value in values)
    assert all(value.dtype == torch.float32 for value in values)
