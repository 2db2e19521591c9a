"""A picture changed by the difference of two captions (DALL·E 2 paper, section 3.3)."""

import math
from collections.abc import Iterator

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.inference.latents import encoded
from dalle_2.inference.plans import EditSettings, Plan, draw, inverting
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.sampling.interpolation import slerp
from dalle_2.text.prompts import check_prompts

THETA = 0.5  # the paper's largest lie between 0.25 and 0.5
LEAST = 1e-6  # length of a difference below which two captions say the same


def text_diff(
    pipeline: DALLe2,
    image: Image.Image,
    source: str,
    target: str,
    n: int = 6,
    *,
    theta: float = THETA,
    seed: int = 0,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """`n` pictures, from the given one towards what `target` says and `source` didn't.

    The image embedding turns towards the normalised difference of the captions' embeddings, by shares of a great circle
    that rise from 0 to `theta`; x_T stays the picture's own inverted noise. A decoder that reads captions is told the
    target. Raises UsageError for theta outside (0, 1], n below 1, captions that say the same, and settings that don't
    fit.
    """
    if not 0 < theta <= 1:
        raise UsageError(f"theta must lie above 0 and at most at 1, got {theta}: the paper uses up to 0.5")
    if n < 1:
        raise UsageError(f"n must be at least 1 picture, got {n}")
    captions, settings = check_prompts([source, target]), inverting(settings)
    direction = difference(pipeline, *captions)
    latents = encoded(pipeline, [image], settings.steps, captions=[source], on_step=on_step)
    shares = [theta] if n == 1 else [theta * k / (n - 1) for k in range(n)]
    plans = [
        Plan(
            slerp(latents.z_img, direction, share)[0], seed, latents.x_T[0], caption=target if share else source,
            metadata={"from": source, "to": target, "theta": round(share, 4)},
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
