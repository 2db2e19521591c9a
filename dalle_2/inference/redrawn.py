"""Image embeddings changed by captions: inverted through the prior under one, drawn again under another.

A decoder's inverted noise holds what its embedding leaves open (DALL·E 2 paper, section 3.3). The prior's holds what a
caption leaves open: where things lie, how large they are, all that isn't said. So an embedding goes up the prior's
noise under what its picture shows, and comes down under what it shall show. Going only part of the way keeps more,
stronger guidance changes more, and no one choice is the best for every picture: several are drawn, and CLIP looks at
them. Where the best of them differs from the picture is where the captions differ (Couairon et al. 2022, "DiffEdit"):
there more are drawn, with the rest of the picture kept.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from dalle_2.inference.held import held_embeddings
from dalle_2.inference.holes import Holed
from dalle_2.inference.looks import drafted, seen
from dalle_2.models.captions import Caption
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.models.prior import Prior
from dalle_2.models.rest import at_work
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.grid import grid
from dalle_2.sampling.inversion import invert
from dalle_2.sampling.sampler import Step

STEPS = 25
REFINED = 2  # fixed-point iterations a step of inversion
DEPTHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the noise's way
GUIDANCE = (1.0, 1.5, 2.0, 3.0)  # on the way down
FURTHER = (1.0, 1.5)  # how much of the difference of the two ways down is added to what was there
CHANGED = 0.3  # mean square difference, in pictures of [-1, 1], from which on a pixel counts as another one
KEPT = 2.0  # what leaving everything else as it was is worth beside the target
PARTICLES = 64  # where the picture changes
AROUND = 2  # pixels that go with those that change


@torch.no_grad()
def redrawn(
    pipeline: DALLe2,
    prior: Prior,
    z_img: Float[Tensor, "1 d"],
    picture: Float[Tensor, "1 3 s s"],
    source: str,
    target: str,
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Float[Tensor, "1 d"]:
    """The embedding of `picture`, of the decoder's size, as `target` wants it where `source` said otherwise.

    Of what CLIP sees in the drafts of all candidates, that whose own draft fits the target, came there the way from
    source to target, and leaves most pixels as they were. seed: of the candidates that are drawn where the first ones
    differ from the picture. on_step: called after each step of an "inversion" and of the "prior".
    """
    captions = pipeline._captions([source, target])
    watch_up, watch_down = (None if on_step is None else partial(on_step, name) for name in ("inversion", "prior"))

    def fit(shown: Tensor) -> Tensor:
        again = seen(pipeline, shown)
        way = F.cosine_similarity(again - z_img, captions.z_txt[1:] - captions.z_txt[:1])
        return F.cosine_similarity(again, captions.z_txt[1:]) + KEPT * (way - _changed(shown, picture))

    with at_work(prior, pipeline.decoder), torch.autocast(pipeline.device.type, enabled=False):
        wished = torch.cat(list(_candidates(prior, prior.space.to_model(z_img), captions, watch_up)))
        z = seen(pipeline, drafted(pipeline, prior.space.finish(prior.space.from_model(wished))))
        drafts = drafted(pipeline, z)
        fits = fit(drafts)
        hole = _elsewhere(drafts[fits.argmax()], picture[0])
        if hole.any() and not hole.all():
            holed, told = Holed(picture[0], hole), _row(captions, 1)
            held = held_embeddings(
                pipeline, prior, told, holed, fit, seed=seed, particles=PARTICLES, on_step=watch_down
            )
            z, fits = torch.cat([z, held]), torch.cat([fits, fit(drafted(pipeline, held))])
    return z[fits.argmax()][None]


def _elsewhere(draft: Float[Tensor, "3 s s"], picture: Float[Tensor, "3 s s"]) -> Bool[Tensor, "1 s s"]:
    """Where a draft shows something else than the picture, with a rim; not where single pixels differ."""
    other = (((draft - picture) ** 2).mean(0, keepdim=True) > CHANGED / 3).float()
    together = (F.avg_pool2d(other, 3, 1, 1) > 1 / 3).float()
    return F.max_pool2d(together, 2 * AROUND + 1, 1, AROUND) > 0


def _candidates(
    prior: Prior, x_0: Float[Tensor, "1 k"], captions: Caption, on_step: Callable[[Step], None] | None
) -> Iterator[Float[Tensor, "1 k"]]:
    """In the prior's own scale: the way down under the target, and the difference of both ways added."""
    source, target = (_row(captions, k) for k in (0, 1))
    walk = grid(prior.noise_scheduler, min(STEPS, prior.noise_scheduler.T), prior.spacing)
    for depth in DEPTHS:
        rows = tuple(t for t in walk if t + 1 <= depth * prior.noise_scheduler.T)
        if not rows:
            continue
        x = _up(prior, x_0, _denoiser(prior, source, 1.0), rows, on_step)
        for guidance in GUIDANCE:
            new, old = (_down(prior, x, _denoiser(prior, caption, guidance), rows) for caption in (target, source))
            yield new
            yield from (x_0 + share * (new - old) for share in FURTHER)


def _changed(drafts: Float[Tensor, "n 3 s s"], picture: Float[Tensor, "1 3 s s"]) -> Float[Tensor, "n"]:
    """The share of pixels that are others, those that are nearly the same counting in part."""
    return (((drafts - picture) ** 2).mean(1).clamp(max=CHANGED) / CHANGED).mean((1, 2))


def _row(captions: Caption, k: int) -> Caption:
    return Caption(captions.z_txt[k : k + 1], None if captions.tokens is None else captions.tokens[k : k + 1])


def _denoiser(prior: Prior, caption: Caption, guidance: float) -> Denoiser:
    tokens = caption.tokens if prior.caption is not None else None
    return prior.denoiser(caption.z_txt, tokens=tokens, guidance=guidance)


def _up(
    prior: Prior, x_0: Tensor, denoiser: Denoiser, rows: Sequence[float], on_step: Callable[[Step], None] | None
) -> Tensor:
    scheduler = prior.noise_scheduler
    for step in invert(denoiser, x_0, len(rows), noise_scheduler=scheduler, timesteps=rows, refine=REFINED):
        if on_step is not None:
            on_step(step)
    return step.x_s


def _down(prior: Prior, x: Tensor, denoiser: Denoiser, rows: Sequence[float]) -> Tensor:
    *_, last = DDIMSampler(prior.noise_scheduler).steps(denoiser, x, len(rows), timesteps=rows)
    return last.x_s
