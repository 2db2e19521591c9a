"""Names of choices that a command line offers. Needs no torch, so that mistakes are found at once."""

from dataclasses import dataclass
from typing import Literal

from dalle_2.scalars import plain_fields

Threshold = Literal["none", "static", "dynamic"]


@plain_fields
@dataclass(frozen=True)
class TokenOptions:
    """How an autoregressive prior draws its tokens, see `TokenSampler`; None is the prior's own way."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """What is asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}
