"""Pictures between two pictures, or between two captions (DALL·E 2 paper, section 3.2)."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.inference.latents import encoded
from dalle_2.inference.plans import EditSettings, Plan, draw, embedded, inverting, stages_of
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.sampling.interpolation import slerp
from dalle_2.scalars import plain_numbers

Noise = Literal["slerp", "fixed"]


@plain_numbers
def interpolate(
    pipeline: DALLe2,
    first: Image.Image,
    second: Image.Image,
    n: int = 8,
    *,
    noise: Noise = "slerp",
    seed: int = 0,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """`n` pictures from one picture to another, both ends among them.

    The image embedding goes along the great circle between theirs. noise: "slerp" lets x_T go along with it, from
    the one picture's inverted noise to the other's, so that the ends are the pictures themselves; "fixed" draws all
    with the noise of `seed`. Raises UsageError for n below 2, and settings that don't fit.
    """
    if noise not in get_args(Noise):
        raise UsageError(f"noise must be one of {', '.join(get_args(Noise))}, got {noise!r}")
    shares, settings = shares_of(n), inverting(settings, pipeline.decoder)
    starts: Sequence[Tensor | None] = [None] * n
    if noise == "slerp":
        latents = encoded(pipeline, [first, second], settings.steps, on_step=on_step)
        z, starts = latents.z_img, _between(latents.x_T, shares)
    else:
        z = pipeline.encode_images([first, second])
    return _draw(pipeline, z, starts, shares, seed, {"noise": noise}, settings, on_step)


@plain_numbers
def interpolate_captions(
    pipeline: DALLe2,
    first: str,
    second: str,
    n: int = 8,
    *,
    seed: int = 0,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """`n` pictures from one caption to another: between what the prior draws for them from the noise of `seed`.

    All pictures have that noise in the decoder too. Raises UsageError for n below 2, and settings that don't fit.
    """
    shares = shares_of(n)
    stages_of(pipeline, settings or EditSettings())  # what doesn't fit is refused before the prior's work
    z = embedded(pipeline, [first, second], settings, seeds=[seed, seed], on_step=on_step)
    between = {"from": first, "to": second}
    return _draw(pipeline, z, [None] * n, shares, seed, between, settings, on_step)


def shares_of(n: int) -> list[float]:
    """`n` even shares of a way, from 0 to 1. Raises UsageError for fewer than the two ends."""
    if n < 2:
        raise UsageError(f"an interpolation has at least its 2 ends, got n = {n}")
    return [k / (n - 1) for k in range(n)]


def _between(ends: Float[Tensor, "2 *shape"], shares: Sequence[float]) -> list[Tensor]:
    return [slerp(ends[:1], ends[1:], share)[0] for share in shares]


def _draw(
    pipeline: DALLe2,
    z: Float[Tensor, "2 d"],
    starts: Sequence[Tensor | None],
    shares: Sequence[float],
    seed: int,
    metadata: dict[str, str],
    settings: EditSettings | None,
    on_step: OnStep | None,
) -> Iterator[Generation]:
    plans = [
        Plan(z_img, seed, start, metadata={"share": round(share, 4), **metadata})
        for z_img, start, share in zip(torch.stack(_between(z, shares)), starts, shares, strict=True)
    ]
    return draw(pipeline, plans, "interpolation", settings, on_step=on_step)
