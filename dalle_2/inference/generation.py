"""What is asked for and what comes out of a run. Needs no torch, so that mistakes are found at once."""

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from dalle_2.config import Settings
from dalle_2.sampling.options import Threshold, TokenOptions

MaskMeans = Literal["auto", "transparent", "white"]  # what a mask with transparency paints, see mask_meaning.py


class GenerationSettings(Settings):
    """How pictures are made; None is the pipeline's own default. Stages are named as in `DALLe2.settings`.

    size: of the pictures, one that a stage makes. noise_level, tile, overlap: of the upsamplers, see
    `Upsampler.sample`. tokens: how an autoregressive prior draws.
    """

    steps: int | None = Field(None, ge=1)
    eta: float = Field(0.0, ge=0, lt=1)
    guidance: dict[str, float] = Field(default_factory=dict)
    stage_steps: dict[str, int] = Field(default_factory=dict)
    samplers: dict[str, str] = Field(default_factory=dict)
    use_prior: bool = True
    prior: Literal["diffusion", "ar"] | None = None
    candidates: int | None = Field(None, ge=1)
    negative: str | None = None
    text_guidance: float | None = Field(None, ge=0)
    thresholding: Threshold | None = None
    micro_batch: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=1)
    noise_level: int | None = Field(None, ge=0)
    tile: int | None = Field(None, ge=1)
    overlap: int | None = Field(None, ge=0)
    tokens: TokenOptions = TokenOptions()


@dataclass(frozen=True, eq=False)
class Generation:
    """A finished picture: the index-th of its run, and all that it takes to make it again."""

    index: int
    prompt: str
    seed: int
    image: Image.Image
    metadata: dict[str, Any]
