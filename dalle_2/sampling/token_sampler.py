"""The next token from the logits of a network: temperature, top-k, top-p, and a draw that belongs to its picture."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.scalars import plain_fields

TINY = torch.finfo(torch.float32).tiny  # nothing would have no logarithm


@plain_fields
@dataclass(frozen=True)
class TokenSampler:
    """How tokens are drawn; the defaults draw from the softmax as it is.

    temperature: logits are divided by it; 0 always takes the likeliest token. top_k: only the k likeliest, None for
    all. top_p: only the likeliest ones that together have this probability (Holtzman et al. 2020, "nucleus"); after
    top_k, of what that has left.

    Raises UsageError for a temperature below 0 or not finite, top_k below 1, and top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature must be a number from 0 up, got {self.temperature}; 1 draws as trained")
        if self.top_k is not None and (isinstance(self.top_k, bool) or self.top_k < 1):
            raise UsageError(f"top_k must be at least 1, got {self.top_k}; leave it out to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}; 1 keeps all tokens")

    def restricted(self, logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The logits of what is drawn from: those of tokens that can't come are -inf."""
        if self.temperature == 0:
            return _likeliest(logits, 1)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            logits = _likeliest(logits, self.top_k)
        return logits if self.top_p == 1 else _nucleus(logits, self.top_p)

    def choose(self, logits: Float[Tensor, "b v"], noise: Float[Tensor, "b v"]) -> Int[Tensor, "b"]:
        """A token a row, by the row's own noise: logarithms of exponential numbers, see `log_exponentials`.

        The largest sum of logit and Gumbel noise is a draw from the softmax (Gumbel 1954). Where two ways to the same
        logits differ in the last digit, with a cache and without, alone and in a batch, they hardly ever disagree in
        the token. The inverse of the cumulative probabilities, with a boundary between any two tokens, disagreed once
        in a thousand tokens of 1024.
        """
        return (self.restricted(logits) - noise).argmax(dim=1)


def log_exponentials(generators: Iterable[torch.Generator], *shape: int) -> Float[Tensor, "b *shape"]:
    """Logarithms of exponential numbers, float32 on the CPU, a row from each generator; one may be named twice."""
    rows = [
        torch.empty(shape, dtype=torch.float32, device=generator.device).exponential_(generator=generator)
        for generator in generators
    ]
    return torch.stack(rows).clamp_min_(TINY).log_()


def _likeliest(logits: Float[Tensor, "b v"], count: int) -> Float[Tensor, "b v"]:
    """The `count` highest logits of each row; of equal ones no more than that."""
    kept = logits.topk(count, dim=1)
    return torch.full_like(logits, -math.inf).scatter(1, kept.indices, kept.values)


def _nucleus(logits: Float[Tensor, "b v"], mass: float) -> Float[Tensor, "b v"]:
    """The logits of the fewest tokens of each row that together have at least this probability."""
    ordered, order = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    beyond = ordered.cumsum(dim=1) - ordered >= mass
    return logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -math.inf)
