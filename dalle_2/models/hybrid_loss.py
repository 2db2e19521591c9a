"""The variational bound that trains a learned variance (Nichol & Dhariwal 2021, sections 3.1 and 3.3)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dalle_2.sampling.noise_scheduler import NoiseScheduler, per_row

VARIATIONAL_WEIGHT = 0.001  # lambda of eq. 16
PIXEL = 1 / 255  # half of the distance between two of 256 levels in [-1, 1]
LEAST = 1e-12


def variational_bound(
    x_0: Float[Tensor, "b *shape"],
    guess: Float[Tensor, "b *shape"],
    x_t: Float[Tensor, "b *shape"],
    variance: Float[Tensor, "b *shape"],
    t: Int[Tensor, "b"],
    scheduler: NoiseScheduler,
) -> Float[Tensor, "b"]:
    """One term of the bound for each row, in bits a dimension; x_0 in [-1, 1], all in float32.

    guess: the network's x_0, which gives the mean and takes no gradient from here. variance: where between the smallest
    and the largest log-variance the network sees it, 0 ... 1 (eq. 15). Rows at t = 0 count the likelihood of 8-bit
    levels, all others the divergence from the true posterior (Ho et al. 2020, eq. 5).
    """
    guess = guess.detach()
    smallest, largest = log_variance_limits(t, scheduler)
    low, high = (per_row(limit, x_t, torch.float32) for limit in (smallest, largest))
    log_variance = variance.float() * high + (1 - variance.float()) * low
    true_mean = scheduler.posterior_mean(x_0.float(), x_t.float(), t)
    mean = scheduler.posterior_mean(guess.float(), x_t.float(), t)
    divergence = _divergence(true_mean, low, mean, log_variance)
    likelihood = -_log_likelihood(x_0.float(), mean, 0.5 * log_variance)
    first = (t == 0).view(-1, *[1] * (x_t.ndim - 1))
    return torch.where(first, likelihood, divergence).flatten(1).mean(1) / math.log(2)


def log_variance_limits(
    t: Int[Tensor, "b"], scheduler: NoiseScheduler
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """The logarithms of the posterior's variance and of beta, which bound the true one, in float64.

    The posterior's is 0 at t = 0, so the next step's stands in for it.
    """
    after_first = t.clamp(min=min(1, scheduler.T - 1))
    posterior = scheduler.posterior_variance(after_first) if scheduler.T > 1 else scheduler.beta_at(t)
    return posterior.log(), scheduler.beta_at(t).log()


def _divergence(mean_p: Tensor, log_p: Tensor, mean_q: Tensor, log_q: Tensor) -> Tensor:
    """KL(N(mean_p, exp log_p) || N(mean_q, exp log_q)), in nats."""
    return 0.5 * (log_q - log_p - 1 + torch.exp(log_p - log_q) + (mean_p - mean_q) ** 2 * torch.exp(-log_q))


def _log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of the mass that a Gaussian puts on the level of x among 256; the outermost levels are open-ended."""
    scale = torch.exp(-log_std)
    upper = torch.where(x > 1 - PIXEL, 1.0, _cdf((x - mean + PIXEL) * scale))
    lower = torch.where(x < -1 + PIXEL, 0.0, _cdf((x - mean - PIXEL) * scale))
    return (upper - lower).clamp(min=LEAST).log()


def _cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)
