"""The timesteps of a walk for a noise table, with spacings that hang on more than its length."""

import math

import torch

from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.spacing import Spacing, check_steps, check_timesteps, spaced


def grid(noise_scheduler: NoiseScheduler, steps: int, spacing: Spacing = "trailing") -> tuple[float, ...]:
    """The `steps` timesteps to visit, falling: as `spaced`, or evenly in log-SNR with "logsnr".

    Raises UsageError unless 1 <= steps <= T, and for an unknown spacing.
    """
    if spacing == "logsnr":
        return _even_in_log_snr(noise_scheduler, steps)
    return spaced(noise_scheduler.T, steps, spacing)


def _even_in_log_snr(noise_scheduler: NoiseScheduler, steps: int) -> tuple[float, ...]:
    """Real-valued timesteps, even in log(alpha_bar / (1 - alpha_bar)), the time that solvers count in (Lu et al. 2022).

    From noise 2 `steps` times as strong as the signal to a signal 2 `steps` times as strong as the noise. What lies
    beyond, in the cosine table more than half of all, would take most of a few steps and change next to nothing: at the
    noisy end the first step crosses it from T-1, at the clean end the last one down to clean data. The errors of both
    fall with the square of the number of steps, like those in between.
    """
    T = noise_scheduler.T
    check_steps(T, steps)
    if steps == 1:
        return (T - 1,)
    noisy, clean = torch.logit(noise_scheduler.alpha_bar[[-1, 0]]).tolist()
    reach = 2 * math.log(2 * steps)
    low, high = max(noisy, -reach), min(clean, reach)
    if not low < high:  # a table of one's own that is never so noisy, or never so clean
        low, high = noisy, clean
    inner = noise_scheduler.timestep_at(torch.linspace(low, high, steps, dtype=torch.float64)[1:])
    return check_timesteps(T, [T - 1, *inner.tolist()])
