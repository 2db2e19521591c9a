"""Initialisation that more than one network uses."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", nn.Conv2d, nn.Linear)


def zeroed(layer: M) -> M:
    """The layer with all weights zero, so that a residual branch starts silent."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
