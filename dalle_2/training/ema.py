"""An exponential moving average of a model's weights, its clock counted in images."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Keeps `model`, a slowly following copy of another.

    halflife: after how many images an old weight counts half (Karras et al. 2024, section 3.1, count the same way).
    While training is young the average follows faster, so that the first weights are soon forgotten.
    """

    def __init__(self, source: nn.Module, halflife: float) -> None:
        self.halflife = halflife
        self.model = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, images: int, batch: int) -> None:
        """Moves towards `source` after a step of `batch` images that brought the total to `images`."""
        halflife = min(self.halflife, images / 10)
        weight = 1 - 0.5 ** (batch / max(halflife, 1e-8))
        averages: list[Tensor] = list(self.model.parameters())
        values: list[Tensor] = list(source.parameters())
        torch._foreach_lerp_(averages, values, weight)
        for average, value in zip(self.model.buffers(), source.buffers(), strict=True):
            average.copy_(value)
