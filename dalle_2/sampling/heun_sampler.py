"""Heun's method (Karras et al. 2022, algorithm 2, without its churn)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.jump import Jump
from dalle_2.sampling.sampler import Move, Noise, Pairs, Sampler, guess

LONGEST = 5.0


class HeunSampler(Sampler):
    """Second order for two calls of the network a step; the last one, to clean data, is Euler's with one call.

    The trapezoid lies over sigma = sqrt(1 / alpha_bar - 1), the noise of x_t / sqrt(alpha_bar_t). Where noise is much
    stronger than data and a step makes sigma r times smaller, its error is r - 1 times Euler's. A step with r above 5
    is therefore left at Euler's, which is DDIM's: on the cosine table that is the first one, out of nearly pure noise,
    where r is in the hundreds and the trapezoid would be off by more than the data is large. Short steps, on which the
    order rests, never come near that bound.
    """

    name = "heun"
    calls = 2

    def _walk(self, denoiser: Denoiser, x: Tensor, pairs: Pairs, eta: float, noise: Noise | None) -> Iterator[Move]:
        for t, s in pairs:
            jump = Jump.of(self.noise_scheduler, t, s)
            x_0 = guess(denoiser, x, t).x_0
            x_s = jump.land(x, x_0, jump.kept)
            if jump.shrinkage * LONGEST >= 1:
                # The mean of both slopes (x - x_0) / sigma is Euler's step to a guess beyond the second one.
                ahead = torch.lerp(x_0, guess(denoiser, x_s, s).x_0, 0.5 / jump.shrinkage)
                x_s = jump.land(x, ahead, jump.kept)
            x = x_s
            yield x_0, x
