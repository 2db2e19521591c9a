"""The table behind Analytic-DPM's variance: how large the noise is that a network predicts (Bao et al. 2022)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.grid import grid
from dalle_2.sampling.noise import normal
from dalle_2.sampling.noise_scheduler import NoiseScheduler, timesteps_of
from dalle_2.sampling.sampler import guess

KNOTS = 50


def eps_mean_square(
    batches: Iterable[tuple[Denoiser, Float[Tensor, "b *shape"]]],
    noise_scheduler: NoiseScheduler,
    generator: torch.Generator,
    *,
    knots: int = KNOTS,
) -> Float64[Tensor, "T"]:
    """E |eps(x_t, t)|^2 / d for t = 0 ... T-1, which `DDPMSampler(variance="analytic")` reads.

    batches: denoisers bound to conditions, unguided, each with the clean data of these conditions; a few hundred rows
    are enough. generator: a CPU one, for the noise. knots: how many timesteps are estimated, evenly in log-SNR; between
    them the table is linear in it. To a model it goes as `model.eps_mean_square`:

        pairs = [(decoder.denoiser(z_img, guidance=1.0), image) for z_img, image in ...]
        decoder.eps_mean_square = eps_mean_square(pairs, decoder.noise_scheduler, torch.Generator())

    Raises UsageError without batches, and for knots outside 1 ... T.
    """
    rows = [*grid(noise_scheduler, min(knots, noise_scheduler.T), "logsnr"), 0]
    timesteps = sorted({round(t) for t in rows})
    total, count = torch.zeros(len(timesteps), dtype=torch.float64, device="cpu"), 0
    for denoiser, x_0 in batches:
        eps = normal(x_0.shape, generator).to(x_0)
        squares = [_mean_square(denoiser, x_0, eps, t, noise_scheduler) for t in timesteps]
        total += len(x_0) * torch.tensor(squares, dtype=torch.float64, device="cpu")
        count += len(x_0)
    if count == 0:
        raise UsageError("the mean squares of predicted noise need at least one batch of clean data, got none")
    return _between(timesteps, total / count, noise_scheduler)


@torch.no_grad()
def _mean_square(denoiser: Denoiser, x_0: Tensor, eps: Tensor, t: int, noise_scheduler: NoiseScheduler) -> float:
    """As 1 - E (|eps|^2 - |predicted|^2) / d: |eps|^2 is d on average, and in strong noise both stray together."""
    times = timesteps_of(t, x_0)
    x_t = noise_scheduler.add_noise(x_0, eps, times)
    predicted = noise_scheduler.eps_from_x_0(x_t, guess(denoiser, x_t, t).x_0, times)
    return 1 - float((eps.double().square() - predicted.double().square()).mean())


def _between(timesteps: list[int], values: Tensor, noise_scheduler: NoiseScheduler) -> Tensor:
    """The values at all timesteps, linear in log-SNR between the known ones."""
    log_snr = torch.logit(noise_scheduler.alpha_bar)
    known = torch.tensor(timesteps, dtype=torch.long, device="cpu")
    every = torch.arange(noise_scheduler.T, device="cpu")
    above = torch.searchsorted(known, every).clamp(1, max(len(known) - 1, 1)).clamp(max=len(known) - 1)
    below = (above - 1).clamp(min=0)
    gap = log_snr[known[above]] - log_snr[known[below]]
    part = (log_snr - log_snr[known[below]]) / torch.where(gap == 0, 1.0, gap)
    return torch.lerp(values[below], values[above], part)
