"""Image embeddings that show a caption and agree with what is kept of a picture, without any training for it.

A draft makes a picture of an embedding for next to nothing. So many embeddings walk down the prior at once, each is
drawn after every step, and those whose pictures agree with the kept pixels, and show CLIP what the caption says, are
continued more often. Without CLIP's word an object that isn't there yet is easily lost: what is kept then fits best.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dalle_2.inference.holes import Holed
from dalle_2.inference.looks import drafted, seen
from dalle_2.models.captions import Caption
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.prior import Prior
from dalle_2.sampling.noise import PictureNoise, normal
from dalle_2.sampling.particles import steered
from dalle_2.sampling.sampler import Step

Fit = Callable[[Float[Tensor, "n 3 s s"]], Float[Tensor, "n"]]  # small pictures -> how well each shows what it shall

PARTICLES = 128
STEPS = 25
STRENGTH = 0.2  # a draft is off by more than its pixels' errors add up to: neighbours err together
WANTED = 200.0  # squares of pixels that weigh as much, on the way, as a fit of 1
ARRIVED = 100.0  # the same for what has arrived


@torch.no_grad()
def held_embedding(
    pipeline: DALLe2,
    prior: Prior,
    caption: Caption,
    picture: Holed,
    *,
    seed: int,
    particles: int = PARTICLES,
    on_step: Callable[[Step], None] | None = None,
) -> Float[Tensor, "d"]:
    """One embedding for one caption and a picture of the decoder's size, of `particles` that the prior draws.

    It is what CLIP sees in the best: whose draft fits the caption and what is kept, and comes back from CLIP as itself.
    """

    def fit(shown: Tensor) -> Tensor:
        return F.cosine_similarity(seen(pipeline, shown), caption.z_txt)

    z = held_embeddings(pipeline, prior, caption, picture, fit, seed=seed, particles=particles, on_step=on_step)
    drafts = drafted(pipeline, z)
    again = seen(pipeline, picture.filled(drafts))
    fits = F.cosine_similarity(again, caption.z_txt) + F.cosine_similarity(again, z)
    return z[(fits - _squares(drafts, picture) / ARRIVED).argmax()]


@torch.no_grad()
def held_embeddings(
    pipeline: DALLe2,
    prior: Prior,
    caption: Caption,
    picture: Holed,
    fit: Fit,
    *,
    seed: int,
    particles: int,
    on_step: Callable[[Step], None] | None = None,
) -> Float[Tensor, "n d"]:
    """What CLIP sees in a picture of the decoder's size whose hole is filled by the drafts of n particles of the prior.

    caption: one, which the prior is told. fit: of filled pictures, what else shall come true. The pipeline's decoder
    must have a draft. on_step: called after each step of the prior.
    """
    stream = PictureNoise([seed], "held").generators[0]
    x_T = normal((particles, prior.space.width), stream).to(pipeline.device)
    tokens = caption.tokens if prior.caption is not None else None
    denoiser = prior.denoiser(caption.z_txt, tokens=tokens, guidance=1.0)

    def drafts_of(x_0: Tensor) -> Tensor:
        return drafted(pipeline, prior.space.finish(prior.space.from_model(x_0)))

    def cost(x_0: Tensor) -> Tensor:
        drafts = drafts_of(x_0)
        return _squares(drafts, picture) - WANTED * fit(picture.filled(drafts))

    steps = min(STEPS, prior.noise_scheduler.T)
    for step in steered(
        denoiser, x_T, steps, cost, strength=STRENGTH, noise_scheduler=prior.noise_scheduler, generator=stream,
        spacing=prior.spacing,
    ):  # fmt: skip
        if on_step is not None:
            on_step(step)
    return seen(pipeline, picture.filled(drafts_of(step.x_0)))


def _squares(drafts: Float[Tensor, "n 3 s s"], picture: Holed) -> Float[Tensor, "n"]:
    """How far drafts are off what is kept."""
    return (((drafts - picture.picture) ** 2) * ~picture.hole).sum((1, 2, 3))
