"""The BSR degradation: what may have befallen a picture on its way to being small (Zhang et al. 2021, section 3).

Two blurs, a change of size, noise and JPEG, in an order drawn anew for each picture: an upsampler that learned to undo
one fixed way would be at a loss with any other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Literal, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.config import Settings
from dalle_2.images import from_pil, to_pil
from dalle_2.sampling.noise import normal, uniform, whole_numbers

V = TypeVar("V")

Kernel = Literal["nearest", "bilinear", "bicubic", "area"]
KERNELS: tuple[Kernel, ...] = ("nearest", "bilinear", "bicubic", "area")
LEVEL = 2 / 255  # one of 255 levels, in [-1, 1]
SHARPEST = 0.05  # pixels; a Gaussian that is narrower touches no neighbour


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= ends[0] <= ends[1] <= bounds.FACTOR:
        raise ValueError(f"must be two numbers from 0 up, the lower one first, and none above {bounds.FACTOR:g}")
    return ends


Range = Annotated[tuple[float, float], AfterValidator(_rising)]
Quality = Annotated[float, Field(ge=1, le=100)]


class BSRSettings(Settings):
    """The ranges that each picture's degradation is drawn from; at strength 1 the paper's, for a factor of 4.

    strength: drawn once a picture. Blurs and noise are multiplied by it, and JPEG's quality is moved towards 100 as it
    falls; at 0 only the change of size is left. blur: the standard deviation of the round Gaussian, axes: of the long
    one along its two axes, both in pixels of the size that the picture has when its turn comes. noise: the standard
    deviation in levels of 255. jpeg: how often there is JPEG. quality: of it, 1 to 100. twice: how often the size
    changes in two steps, with what lies between them in the order.
    """

    strength: Range = (0.0, 1.0)
    blur: Range = (0.1, 2.8)
    axes: Range = (0.7, 2.8)
    noise: Range = (1.0, 25.0)
    jpeg: float = Field(default=0.75, ge=0, le=1)
    quality: Annotated[tuple[Quality, Quality], AfterValidator(_rising)] = (30.0, 95.0)
    twice: float = Field(default=0.25, ge=0, le=1)


@dataclass(frozen=True, eq=False)
class Dice:
    """Numbers from one CPU generator."""

    generator: torch.Generator

    def uniform(self, ends: tuple[float, float]) -> float:
        """A number between the two."""
        return ends[0] + (ends[1] - ends[0]) * float(uniform((), self.generator))

    def happens(self, share: float) -> bool:
        """True that often."""
        return self.uniform((0.0, 1.0)) < share

    def among(self, options: Sequence[V]) -> V:
        """One of them, each as likely."""
        return options[int(whole_numbers(len(options), (), self.generator))]

    def shuffled(self, values: Sequence[V]) -> list[V]:
        """All of them, in any order."""
        return [values[k] for k in torch.randperm(len(values), generator=self.generator, device="cpu").tolist()]

    def normal(self, *shape: int) -> Float[Tensor, "..."]:
        """Standard normal noise."""
        return normal(shape, self.generator)


@dataclass(frozen=True, eq=False)
class Fate:
    """What the steps of one picture share: how strong they are, and the size that they lead to."""

    settings: BSRSettings
    strength: float
    scale: int
    size: tuple[int, int]
    dice: Dice


def degraded(
    x: Float[Tensor, "b 3 h w"], scale: int, settings: BSRSettings, generator: torch.Generator
) -> Float[Tensor, "b 3 k k2"]:
    """Small pictures, a `scale`-th of a side, for large ones in [-1, 1]; each with an order and a strength of its own.

    It all follows from the generator, a CPU one, and is computed on the CPU, as JPEG is.
    """
    dice = Dice(generator)
    return torch.stack([_degraded(picture, scale, settings, dice) for picture in x.cpu()]).to(x)


def _degraded(x: Float[Tensor, "3 h w"], scale: int, settings: BSRSettings, dice: Dice) -> Float[Tensor, "3 k k2"]:
    size = (x.shape[-2] // scale, x.shape[-1] // scale)
    fate = Fate(settings, dice.uniform(settings.strength), scale, size, dice)
    for step in dice.shuffled(STEPS):
        x = step(x, fate).clamp(-1, 1)
    return x if x.shape[-2:] == size else resized(x, size, dice).clamp(-1, 1)


# Blur


def round_blur(x: Float[Tensor, "3 h w"], fate: Fate) -> Float[Tensor, "3 h w"]:
    """By a Gaussian that is as wide in all directions."""
    sigma = fate.strength * fate.dice.uniform(fate.settings.blur)
    return filtered(x, sigma, sigma)


def long_blur(x: Float[Tensor, "3 h w"], fate: Fate) -> Float[Tensor, "3 h w"]:
    """By a Gaussian that is wider in one direction than in the other."""
    along, across = (fate.strength * fate.dice.uniform(fate.settings.axes) for _ in range(2))
    return filtered(x, along, across, fate.dice.uniform((0.0, math.pi)))


def filtered(x: Float[Tensor, "3 h w"], along: float, across: float, angle: float = 0.0) -> Float[Tensor, "3 h w"]:
    """Blurred by a Gaussian of two widths in pixels, its first axis turned by `angle` from the horizontal.

    Beyond the border the picture is mirrored; a kernel that would reach beyond the mirror is cut.
    """
    radius = min(math.ceil(3 * max(along, across)), *(side - 1 for side in x.shape[-2:]))
    if radius < 1 or max(along, across) < SHARPEST:
        return x
    kernel = gaussian(radius, along, across, angle).to(x)[None, None]
    padded = F.pad(x[:, None], (radius,) * 4, mode="reflect")  # a channel a row: each has the one kernel
    return F.conv2d(padded, kernel)[:, 0]


def gaussian(radius: int, along: float, across: float, angle: float) -> Float[Tensor, "n n"]:
    """A Gaussian of two widths on 2 `radius` + 1 pixels a side, its sum 1."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
    y, x = steps[:, None], steps[None, :]
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    weights = torch.exp(-0.5 * ((u / max(along, SHARPEST)) ** 2 + (v / max(across, SHARPEST)) ** 2))
    return (weights / weights.sum()).float()


# Size


def resize(x: Float[Tensor, "3 h w"], fate: Fate) -> Float[Tensor, "3 k k2"]:
    """To the small size, or to one between half of that and the large one, from which the very last step goes on."""
    if not fate.dice.happens(fate.settings.twice):
        return resized(x, fate.size, fate.dice)
    factor = fate.dice.uniform((0.5, float(fate.scale)))
    return resized(x, (max(1, round(fate.size[0] * factor)), max(1, round(fate.size[1] * factor))), fate.dice)


def resized(x: Float[Tensor, "3 h w"], size: tuple[int, int], dice: Dice) -> Float[Tensor, "3 k k2"]:
    """To another size by a kernel drawn at random. None but "area" smooths before it picks, as cheap scalers don't."""
    kernel = dice.among(KERNELS)
    if kernel == "nearest":
        return nearest(x, size, [axis for axis in (-2, -1) if dice.happens(0.5)])
    corners = None if kernel == "area" else False
    return F.interpolate(x[None], size=size, mode=kernel, align_corners=corners)[0]


def nearest(x: Float[Tensor, "3 h w"], size: tuple[int, int], flipped: Sequence[int]) -> Float[Tensor, "3 k k2"]:
    """The pixel nearest to each centre. Of two that are as near it is the second, and on a `flipped` axis the first:
    always the same one would shift the picture."""
    picked = F.interpolate(x.flip(tuple(flipped))[None], size=size, mode="nearest-exact")[0]
    return picked.flip(tuple(flipped))


# Noise


def noise(x: Float[Tensor, "3 h w"], fate: Fate) -> Float[Tensor, "3 h w"]:
    """More of it in the picture, grey or coloured."""
    sigma = fate.strength * fate.dice.uniform(fate.settings.noise) * LEVEL
    return x + sigma * torch.einsum("ij,jhw->ihw", mixing(fate.dice), fate.dice.normal(*x.shape))


def mixing(dice: Dice) -> Float[Tensor, "3 3"]:
    """The matrix M that makes noise of red, green and blue out of three independent ones; M Mᵀ is its covariance.

    In two of five cases each channel has its own, in two all have the same (grey noise), and in one the covariance has
    any axes, with a variance between 0 and 1 along each.
    """
    kind = dice.among(("own", "own", "grey", "grey", "any"))
    if kind == "own":
        return torch.eye(3, dtype=torch.float32, device="cpu")
    if kind == "grey":
        return torch.tensor([[1.0, 0.0, 0.0]] * 3, dtype=torch.float32, device="cpu")
    axes, _ = torch.linalg.qr(dice.normal(3, 3))
    lengths = torch.tensor([dice.uniform((0.0, 1.0)) for _ in range(3)], dtype=torch.float32, device="cpu")
    return axes * lengths.sqrt()


# JPEG


def compress(x: Float[Tensor, "3 h w"], fate: Fate) -> Float[Tensor, "3 h w"]:
    """Through a JPEG file, mostly."""
    quality = 100 - fate.strength * (100 - fate.dice.uniform(fate.settings.quality))
    return jpeg(x, round(quality)) if fate.dice.happens(fate.settings.jpeg) and fate.strength > 0 else x


def jpeg(x: Float[Tensor, "3 h w"], quality: int) -> Float[Tensor, "3 h w"]:
    """The picture after a JPEG file of that quality, 1 to 100."""
    with BytesIO() as file:
        to_pil(x).save(file, format="JPEG", quality=quality)
        with Image.open(file) as image:
            return from_pil(image).to(x)


STEPS: tuple[Callable[[Tensor, Fate], Tensor], ...] = (round_blur, long_blur, resize, noise, compress)
