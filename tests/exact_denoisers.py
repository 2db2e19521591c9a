"""Denoisers that are right about everything, and where the exact solution of their ODE leads."""

import math

import torch

from dalle_2 import NoiseScheduler
from dalle_2.sampling.denoiser import Denoised

COSINE, LINEAR = NoiseScheduler(), NoiseScheduler(schedule="linear")
MU, STD = 0.3, 0.5


def alpha_bar(scheduler, t, x):
    return scheduler.alpha_bar_at(t).view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def gaussian(scheduler):
    """The exact denoiser of data drawn from N(MU, STD^2): E[x_0 | x_t], at real-valued t as well."""

    def denoise(x, t):
        a = alpha_bar(scheduler, t, x)
        return Denoised(MU + a.sqrt() * STD**2 / (a * STD**2 + 1 - a) * (x - a.sqrt() * MU))

    return denoise


def mixture_mean(x, a, std=0.35, means=(-0.8, 0.1, 0.9)):
    """E[x_0 | x_t] of data drawn from three Gaussians, which no solver gets right by luck."""
    means, wide = torch.tensor(means, dtype=x.dtype), a * std**2 + 1 - a
    apart = x[..., None] - a.sqrt()[..., None] * means
    weights = (-(apart**2) / (2 * wide[..., None])).softmax(-1)
    return (weights * (means + (a.sqrt() * std**2 / wide)[..., None] * apart)).sum(-1)


def mixture(scheduler, std=0.35):
    return lambda x, t: Denoised(mixture_mean(x, alpha_bar(scheduler, t, x).expand_as(x), std))


def start(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gaussian_table(scheduler):
    """E |eps|^2 of the exact denoiser of Gaussian data."""
    return (1 - scheduler.alpha_bar) / (scheduler.alpha_bar * STD**2 + 1 - scheduler.alpha_bar)


def exact_gaussian(scheduler, x_T):
    """Along the ODE a Gaussian keeps every sample at its own quantile."""
    a = float(scheduler.alpha_bar[-1])
    return MU + STD * (x_T - math.sqrt(a) * MU) / math.sqrt(a * STD**2 + 1 - a)


def exact_ode(x, low, high, rows=400, std=0.35):
    """The mixture's ODE from half-log-SNR `low` to `high`, in x / sqrt(alpha_bar), by Runge and Kutta."""

    def slope(time, y):
        a = torch.sigmoid(torch.tensor(2 * time, dtype=y.dtype)).expand_as(y)
        return mixture_mean(a.sqrt() * y, a, std) - y

    y, h = x / math.sqrt(1 / (1 + math.exp(-2 * low))), (high - low) / rows
    for k in range(rows):
        time = low + k * h
        a = slope(time, y)
        b = slope(time + h / 2, y + h / 2 * a)
        c = slope(time + h / 2, y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(time + h, y + h * c))
    return y * math.sqrt(1 / (1 + math.exp(-2 * high)))
