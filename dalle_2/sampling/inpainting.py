"""Sampling around what is known: a denoiser that is told part of the answer."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dalle_2.sampling.denoiser import Denoised, Denoiser


def keep_known(
    denoiser: Denoiser, x_0: Float[Tensor, "b *shape"], hole: Bool[Tensor, "b *shape2"]
) -> Denoiser:
    """The denoiser with the true x_0 in place of its guess wherever there is no hole.

    Each step then carries the known part on as noised by the very noise that x_t holds there, and the last one ends in
    it exactly. It goes round guidance and thresholding, which would change it. x_0 and hole broadcast to x_t.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        answer = denoiser(x_t, t)
        return Denoised(torch.where(hole, answer.x_0, x_0.to(answer.x_0)), answer.variance)

    return denoise
