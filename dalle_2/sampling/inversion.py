"""DDIM inversion: from data up to the noise that DDIM turns into that data (Song et al. 2021, section 4.3)."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.grid import grid
from dalle_2.sampling.jump import Jump
from dalle_2.sampling.noise_scheduler import NoiseScheduler, timesteps_of
from dalle_2.sampling.sampler import Pairs, Step, guess
from dalle_2.sampling.spacing import Spacing, check_timesteps, walk
from dalle_2.scalars import plain_numbers


@plain_numbers
def invert(
    denoiser: Denoiser,
    x_0: Float[Tensor, "b *shape"],
    steps: int,
    *,
    noise_scheduler: NoiseScheduler,
    spacing: Spacing = "trailing",
    timesteps: Sequence[float] | None = None,
    refine: int = 0,
) -> Iterator[Step]:
    """Walks up the grid that `DDIMSampler` walks down; the last x_s is the start from which that finds x_0 again.

    A `Step` goes here from x_t at t to the noisier x_s at s, the first one from clean data at t = -1. spacing,
    timesteps: those of the way down, where guidance must be the same too; timesteps fall, as the sampler takes them.

    refine: 0 is the usual explicit form: the guess at the lower end stands for the whole step. The way down asks at the
    upper end, and so ends beside x_0 by an error of first order. Above 0 each step is repeated as often with the guess
    at its upper end, at one call each: that finds the x_s from which DDIM's own step leads back, and the round trip is
    exact as far as the repetitions converge. They do so quickly unless guidance is strong or steps are few.

    There is no noise to ask for in clean data: the first call is at t = 0, the least noise of the table, with x_0 in
    place of x_t.

    Which spacing brings data back nearest hangs on the data: pictures, whose edges are sharp down to the least noise,
    come back far nearer with "logsnr", whose first step up is the shortest; smooth data do with "trailing".

    A denoiser that clips its guesses is inverted as it is, and best with the same clipping as on the way down: the
    refined form then repeats the clipping sampler's own steps, and finds a start that leads to x_0 for any x_0 within
    the limits. Where clipping acts more than one start does, and this is one of them.

    Raises UsageError at the call for steps outside 1 ... T, bad timesteps, and a negative refine.
    """
    T = noise_scheduler.T
    rows = grid(noise_scheduler, steps, spacing) if timesteps is None else check_timesteps(T, timesteps)
    if len(rows) != steps:
        raise UsageError(f"got {len(rows)} timesteps for {steps} steps; give one a step")
    if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0:
        raise UsageError(f"refine must be a whole number from 0 up, got {refine!r}; 0 is the explicit form")
    x = x_0.to(torch.promote_types(x_0.dtype, torch.float32))
    return _climb(denoiser, x, walk(rows)[::-1], noise_scheduler, refine)


def _climb(denoiser: Denoiser, x: Tensor, pairs: Pairs, noise_scheduler: NoiseScheduler, refine: int) -> Iterator[Step]:
    for index, (upper, lower) in enumerate(pairs):
        down = Jump.of(noise_scheduler, upper, lower)
        with torch.no_grad():
            x_0, x_upper = _explicit(denoiser, x, lower, down, noise_scheduler)
            for _ in range(refine):
                x_0 = guess(denoiser, x_upper, upper).x_0
                x_upper = _implicit(x, x_upper, x_0, down)
        yield Step(index, len(pairs), lower, upper, x, x_0, x_upper)
        x = x_upper


def _explicit(
    denoiser: Denoiser, x: Tensor, lower: float, down: Jump, noise_scheduler: NoiseScheduler
) -> tuple[Tensor, Tensor]:
    """The guess at the lower end, and where it leads with the noise that it implies."""
    asked = max(lower, 0)
    x_0 = guess(denoiser, x, asked).x_0
    eps = noise_scheduler.eps_from_x_0(x, x_0, timesteps_of(asked, x))
    clean = x if down.to_clean else x_0
    return x_0, down.now.signal * clean + down.now.noise * eps


def _implicit(x: Tensor, x_upper: Tensor, x_0: Tensor, down: Jump) -> Tensor:
    """One fixed-point iteration for the x_upper that DDIM's step leads from to x, with its guess x_0 at x_upper.

    The step is solved for x_upper with either x_0 held or the noise that it implies. On data of unit variance the first
    shrinks errors faster where sigma now times sigma then is above 1, the second below.
    """
    if down.now.sigma * down.then.sigma > 1:
        return (x - (down.then.signal - down.kept * down.now.signal) * x_0) / down.kept
    eps = (x_upper - down.now.signal * x_0) / down.now.noise
    return down.now.signal / down.then.signal * (x - down.then.noise * eps) + down.now.noise * eps
