"""Sampling towards what can be measured: many walks at once, of which the better are continued more often.

A denoiser knows what its condition says. What else is known of the answer may only be measurable on a finished guess:
that a picture drawn from an embedding agrees with pixels that are kept, say. Sequential Monte Carlo takes that in
without any training and without gradients (Wu et al. 2023, "Practical and asymptotically exact conditional sampling in
diffusion models", with the denoiser's own steps as proposals).
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.grid import grid
from dalle_2.sampling.jump import Jump
from dalle_2.sampling.noise import normal
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.sampler import Step, guess
from dalle_2.sampling.spacing import Spacing, walk
from dalle_2.scalars import plain_numbers

Cost = Callable[[Tensor], Tensor]

TRUST = 3  # the power of alpha_bar by which a guess that is still mostly noise counts less
FEW = 0.5  # share of the particles that must count for something; below it they are drawn anew


@plain_numbers
def steered(
    denoiser: Denoiser,
    x_T: Float[Tensor, "b *shape"],
    steps: int,
    cost: Cost,
    *,
    strength: float,
    noise_scheduler: NoiseScheduler,
    generator: torch.Generator,
    spacing: Spacing = "trailing",
) -> Iterator[Step]:
    """Walks all rows of x_T down as DDPM does, and yields each `Step`; the last x_0 are the particles.

    cost: guesses x_0 -> a number a row, the lower the better. A particle's weight falls with exp(-strength cost): it is
    the likelihood of what is measured, with an error of variance 1 / (2 strength) where the cost is a squared one.
    While a guess is mostly noise its cost counts by alpha_bar cubed. When the weights of few particles outweigh the
    others', as many are drawn anew by their weights, and go on with noise of their own. generator: a CPU one.

    Raises UsageError for steps outside 1 ... T, fewer than two particles, and a strength that is not positive.
    """
    if len(x_T) < 2 or not 0 < strength < math.inf:
        raise UsageError(f"steering takes at least 2 particles and a positive strength, got {len(x_T)} and {strength}")
    pairs = walk(grid(noise_scheduler, steps, spacing))
    return _steps(denoiser, x_T, pairs, cost, strength, noise_scheduler, generator)


def _steps(
    denoiser: Denoiser,
    x: Tensor,
    pairs: list[tuple[float, float]],
    cost: Cost,
    strength: float,
    noise_scheduler: NoiseScheduler,
    generator: torch.Generator,
) -> Iterator[Step]:
    weight, told = torch.zeros(2, len(x), dtype=torch.float64, device="cpu").unbind()
    for index, (t, s) in enumerate(pairs):
        jump = Jump.of(noise_scheduler, t, s)
        with torch.no_grad():
            x_0 = guess(denoiser, x, t).x_0
            says = -strength * jump.now.signal ** (2 * TRUST) * cost(x_0).cpu().double()  # a Mac's GPU has no float64
            # What the last guess said is taken back: only the newest counts.
            weight, told = weight + says - told, says
            last = index + 1 == len(pairs)  # after which nobody knows the weights any more
            if last or effective(weight) < FEW * len(x):
                rows = drawn_anew(weight, generator)
                weight, told = torch.zeros_like(weight), told[rows]
                x, x_0 = x[rows.to(x.device)], x_0[rows.to(x.device)]
            noise = normal(x.shape, generator).to(x)
            x_s = jump.land(x, x_0, jump.kept_by_posterior) + math.sqrt(max(jump.posterior_variance, 0.0)) * noise
        yield Step(index, len(pairs), t, s, x, x_0, x_s)
        x = x_s


def effective(log_weight: Float[Tensor, "b"]) -> float:
    """How many equal weights these are worth: 1 where one outweighs all others, b where all are the same."""
    return float(1 / log_weight.softmax(0).square().sum())


def drawn_anew(log_weight: Float[Tensor, "b"], generator: torch.Generator) -> Int[Tensor, "b"]:
    """As many rows as there are, each about as often as its weight says: evenly spaced over the weights in a row."""
    count = len(log_weight)
    first = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu")
    places = (first + torch.arange(count, device="cpu")) / count
    return torch.searchsorted(log_weight.softmax(0).cumsum(0), places).clamp(max=count - 1)
