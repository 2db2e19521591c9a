"""Paths between two vectors or two noises (DALL·E 2 paper, section 3.2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.scalars import plain_numbers

PARALLEL = 1e-6  # sine of the angle below which a great circle is a line in all digits that count


@plain_numbers
def slerp(
    a: Float[Tensor, "b *shape"], b: Float[Tensor, "b *shape"], share: float | Float[Tensor, "b"]
) -> Float[Tensor, "b *shape"]:
    """The point at `share` (0 ... 1) of the way from a to b along the great circle, row by row (Shoemake 1985).

    Each row counts as one vector. Its direction turns evenly and its length goes evenly from a's to b's: unit vectors
    give unit vectors, and two noises a noise. Computed in float64.

    Raises UsageError for a share outside [0, 1], and for rows that are zero or opposite, which no one circle joins.
    """
    part = torch.as_tensor(share, dtype=torch.float64, device="cpu")
    if not bool(((part >= 0) & (part <= 1)).all()):
        raise UsageError(f"an interpolation goes from 0 to 1, got {share}")
    flat_a, flat_b = (x.flatten(1).cpu().double() for x in (a, b))  # some devices have no float64
    long_a, long_b = flat_a.norm(dim=1, keepdim=True), flat_b.norm(dim=1, keepdim=True)
    if not bool(((long_a > 0) & (long_b > 0)).all()):
        raise UsageError("no direction leads from or to a vector of length 0")
    unit_a, unit_b = flat_a / long_a, flat_b / long_b
    part = part.expand(len(a))[:, None]
    turned = _turned(unit_a, unit_b, part)
    return ((long_a + part * (long_b - long_a)) * turned).to(a.dtype).to(a.device).view_as(a)


def _turned(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    cosine = (a * b).sum(1, keepdim=True)
    across = b - cosine * a  # of length sin(angle), which small angles keep their digits in
    sine = across.norm(dim=1, keepdim=True)
    if bool(((sine < PARALLEL) & (cosine < 0)).any()):
        raise UsageError("two opposite directions have no one way between them")
    angle = part * torch.atan2(sine, cosine)
    near = sine < PARALLEL
    turned = torch.cos(angle) * a + torch.sin(angle) * across / torch.where(near, torch.ones_like(sine), sine)
    return torch.where(near, a, turned)
