"""Image embeddings that show a caption and agree with what is kept of a picture, without any training for it.

A draft makes a picture of an embedding for next to nothing. So many embeddings walk down the prior at once, each is
drawn after every step, and those whose pictures agree with the kept pixels are continued more often.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dalle_2.images import to_pils
from dalle_2.inference.holes import Holed
from dalle_2.models.captions import Caption
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.prior import Prior
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.particles import steered
from dalle_2.sampling.sampler import Step

PARTICLES = 128
STEPS = 25
STRENGTH = 0.2  # a draft is off by more than its pixels' errors add up to: neighbours err together
LOOKED_AT = 4  # the best of so many particles are looked at by CLIP


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

    Of those that agree best with what is kept, the one whose picture fits the caption, and comes back from CLIP as
    itself. The pipeline's decoder must have a draft.
    """
    decoder = pipeline.decoder
    known = (~picture.hole).to(picture.picture)
    stream = PictureNoise([seed], "held").generators[0]
    x_T = torch.randn(particles, prior.space.width, generator=stream).to(pipeline.device)
    tokens = caption.tokens if prior.caption is not None else None
    denoiser = prior.denoiser(caption.z_txt, tokens=tokens, guidance=1.0)

    def embeddings(x_0: Tensor) -> Tensor:
        return prior.space.finish(prior.space.from_model(x_0))

    def cost(x_0: Tensor) -> Tensor:
        drafts = decoder.drafts(embeddings(x_0))
        assert drafts is not None
        return (((drafts - picture.picture) ** 2) * known).sum((1, 2, 3))

    steps = min(STEPS, prior.noise_scheduler.T)
    for step in steered(
        denoiser, x_T, steps, cost, strength=STRENGTH, noise_scheduler=prior.noise_scheduler, generator=stream,
        spacing=prior.spacing,
    ):  # fmt: skip
        if on_step is not None:
            on_step(step)
    nearest = cost(step.x_0).argsort()[: max(1, particles // LOOKED_AT)]
    z = embeddings(step.x_0[nearest])
    drafts = decoder.drafts(z)
    assert drafts is not None
    filled = torch.where(picture.hole, drafts.float(), picture.picture)
    seen = pipeline._encode_images(to_pils(filled))
    return z[(F.cosine_similarity(seen, caption.z_txt) + F.cosine_similarity(seen, z)).argmax()]
