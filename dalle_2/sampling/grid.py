"""The timesteps of a walk for a noise table, with spacings that hang on more than its length."""

import math
from collections.abc import Sequence

import torch

from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.spacing import Spacing, check_steps, check_timesteps, spaced
from dalle_2.scalars import plain_numbers

# Of 1000 timesteps, 10, 10, 3, 2 and 2 in each fifth, the last but two in place of the noisiest.
FAST27 = (
    0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355, 377, 399, 400, 500, 599, 600,
    799, 800, 997,
)  # fmt: skip


@plain_numbers
def grid(noise_scheduler: NoiseScheduler, steps: int, spacing: Spacing = "trailing") -> tuple[float, ...]:
    """The `steps` timesteps to visit, falling: as `spaced`, evenly in log-SNR with "logsnr", or with "fast27" as those
    of GLIDE's upsampler, most of them where little noise is left.

    Raises UsageError unless 1 <= steps <= T, and for an unknown spacing.
    """
    if spacing == "logsnr":
        return _even_in_log_snr(noise_scheduler, steps)
    if spacing == "fast27":
        return _as_fast27(noise_scheduler.T, steps)
    return spaced(noise_scheduler.T, steps, spacing)


def _as_fast27(T: int, steps: int) -> tuple[float, ...]:
    """GLIDE's own 27 timesteps; of another number of steps, or of another T, what lies evenly between them."""
    check_steps(T, steps)
    if steps == 1:
        return (T - 1,)
    stretched = (T - 1) / 999
    places = [(len(FAST27) - 1) * k / (steps - 1) for k in reversed(range(steps))]
    return check_timesteps(T, [stretched * _between(FAST27, place) for place in places])


def _between(values: Sequence[float], place: float) -> float:
    """The values at a real-valued place among them."""
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


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
    inner = noise_scheduler.timestep_at(torch.linspace(low, high, steps, dtype=torch.float64, device="cpu")[1:])
    return check_timesteps(T, [T - 1, *inner.tolist()])
