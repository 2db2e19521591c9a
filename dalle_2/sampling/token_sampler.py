"""The next token from the logits of a network: temperature, top-k, top-p, and a draw that belongs to its picture."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dalle_2.errors import UsageError


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

    def probabilities(self, logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """With what probability each token is drawn."""
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            logits = _likeliest(logits, self.top_k)
        shares = logits.softmax(dim=1)
        return shares if self.top_p == 1 else _nucleus(shares, self.top_p)

    def choose(self, logits: Float[Tensor, "b v"], uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
        """A token a row: the first whose cumulative probability is above the row's number in [0, 1).

        In double precision where the device has it. Should two ways to the same logits differ in the last digit, the
        rare draw between their cumulative probabilities ends in the neighbouring token, which of buckets in their
        order is the nearest.
        """
        if self.temperature == 0:
            return logits.argmax(dim=1)
        shares = self.probabilities(logits.to(exact(logits.device))).cumsum(dim=1)
        point = uniform.to(shares)[:, None] * shares[:, -1:]
        return torch.searchsorted(shares, point, right=True)[:, 0].clamp(max=shares.shape[1] - 1)


def uniforms(
    generators: Iterable[torch.Generator], count: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "b {count}"]:
    """`count` numbers in [0, 1) from each generator, a CPU one, on a device; a generator may be named twice."""
    rows = [torch.rand(count, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(rows).to(exact(device)).to(device)


def exact(device: torch.device | str) -> torch.dtype:
    """Double precision where the device has it."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def _likeliest(logits: Float[Tensor, "b v"], count: int) -> Float[Tensor, "b v"]:
    """The `count` highest logits of each row; of equal ones no more than that."""
    kept = logits.topk(count, dim=1)
    return torch.full_like(logits, -math.inf).scatter(1, kept.indices, kept.values)


def _nucleus(shares: Float[Tensor, "b v"], mass: float) -> Float[Tensor, "b v"]:
    """The fewest tokens of each row that together have at least this probability, scaled up to 1."""
    ordered, order = shares.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(dim=1) - ordered
    kept = torch.zeros_like(shares).scatter(1, order, ordered * (before < mass))
    return kept / kept.sum(dim=1, keepdim=True)
