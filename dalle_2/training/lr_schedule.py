"""How the learning rate moves with the images seen: a linear rise, then a fall along half a cosine."""

import math
from typing import Self

from pydantic import Field, model_validator

from dalle_2.config import Settings


class LRSchedule(Settings):
    """A factor on each parameter group's own learning rate.

    warmup: images until the full rate. total: images at which the fall ends; None keeps the full rate.
    final: the factor at the end.
    """

    warmup: int = Field(default=0, ge=0)
    total: int | None = Field(default=None, ge=1)
    final: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _rise_before_fall(self) -> Self:
        if self.total is not None and self.warmup >= self.total:
            raise ValueError(f"warmup {self.warmup} must be shorter than the whole run of {self.total} images")
        return self

    def factor(self, images: int) -> float:
        """The factor for a step that begins after `images` images."""
        if images < self.warmup:
            return (images + 1) / self.warmup
        if self.total is None:
            return 1.0
        fallen = min(1.0, (images - self.warmup) / (self.total - self.warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fallen))
