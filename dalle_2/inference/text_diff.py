"""A picture changed by the difference of two captions (DALL·E 2 paper, section 3.3)."""

import math
from collections.abc import Iterator
from typing import Literal, get_args

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.inference.latents import at_decoder_size, encoded
from dalle_2.inference.plans import EditSettings, Plan, draw, inverting, stages_of, steerable_prior
from dalle_2.inference.redrawn import redrawn
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.sampling.interpolation import slerp
from dalle_2.scalars import plain_numbers
from dalle_2.text.prompts import check_prompts

By = Literal["direction", "prior"]
THETA: dict[By, float] = {"direction": 0.5, "prior": 1.0}  # the paper's largest lie between 0.25 and 0.5
LEAST = 1e-6  # length of a difference below which two captions say the same


@plain_numbers
def text_diff(
    pipeline: DALLe2,
    image: Image.Image,
    source: str,
    target: str,
    n: int = 6,
    *,
    theta: float | None = None,
    by: By | None = None,
    seed: int = 0,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """`n` pictures, from the given one towards what `target` says and `source` didn't.

    by: "direction", the paper's way: the image embedding turns towards the normalised difference of the captions'
    embeddings, by shares of a great circle that rise from 0 to `theta`, by default 0.5; x_T stays the picture's own
    inverted noise. "prior": it goes along the great circle to what the prior makes of it, see `redrawn`, by shares of
    that way that rise to `theta`, by default 1, and x_T is noise of the seed. None takes "prior" where the pipeline
    can.

    A decoder that reads captions is told the target. Raises UsageError for theta outside (0, 1], n below 1, captions
    that say the same, a pipeline that can't go by its prior, and settings that don't fit.
    """
    if by not in (None, *get_args(By)):
        raise UsageError(f"a text diff goes by 'direction' or 'prior', got {by!r}")
    prior = steerable_prior(pipeline) if by != "direction" else None
    if by == "prior" and prior is None:
        raise UsageError("by its prior a pipeline needs a diffusion prior and a decoder with a draft: use 'direction'")
    way: By = "direction" if prior is None else "prior"
    most = THETA[way] if theta is None else theta
    if not 0 < most <= 1:
        raise UsageError(f"theta must lie above 0 and at most at 1, got {most}: the paper uses up to 0.5")
    if n < 1:
        raise UsageError(f"n must be at least 1 picture, got {n}")
    check_prompts([source, target])
    direction = difference(pipeline, source, target)
    settings = inverting(settings, pipeline.decoder) if prior is None else settings or EditSettings()
    stages_of(pipeline, settings)  # what doesn't fit is refused before the inversion's work
    shares = [most] if n == 1 else [most * k / (n - 1) for k in range(n)]
    said = {"from": source, "to": target, "by": way}
    if prior is None:
        latents = encoded(pipeline, [image], settings.steps, captions=[source], on_step=on_step)
        z, end, x_T = latents.z_img, direction, latents.x_T[0]
    else:
        z, x_T = pipeline.encode_images([image]), None
        small = at_decoder_size(pipeline, [image])
        end = redrawn(pipeline, prior, z, small, source, target, seed=seed, on_step=on_step)
    plans = [
        Plan(
            slerp(z, end, share)[0], seed, x_T, caption=target if share else source,
            metadata={**said, "theta": round(share, 4)},
        )
        for share in shares
    ]  # fmt: skip
    return draw(pipeline, plans, "text diff", settings, on_step=on_step)


def difference(pipeline: DALLe2, source: str, target: str) -> Float[Tensor, "1 d"]:
    """The direction from one caption to another, of unit length. Raises UsageError for captions of one embedding."""
    z = pipeline._encode_text([source, target])
    apart = z[1:] - z[:1]
    if float(apart.norm()) < LEAST * math.sqrt(float((z**2).sum())):
        raise UsageError(f"{source!r} and {target!r} say the same to this CLIP: there is no difference to follow")
    return F.normalize(apart, dim=-1)
