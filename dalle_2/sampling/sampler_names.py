"""The samplers' names. Needs no torch, so that a misspelt one is found at once."""

from difflib import get_close_matches
from typing import Literal, get_args

from dalle_2.errors import UsageError

SamplerName = Literal["ddim", "ddpm", "ddpm-analytic", "dpm++2m", "dpm++2m-sde", "heun", "unipc"]
NAMES: tuple[SamplerName, ...] = get_args(SamplerName)


def sampler_name(name: str) -> SamplerName:
    """The name, if it is one. Raises UsageError otherwise, with the nearest, or all of them."""
    for known in NAMES:
        if name == known:
            return known
    close = get_close_matches(str(name).lower(), NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(NAMES)}"
    raise UsageError(f"no sampler {name!r}: {hint}")
