"""Initialisation that more than one network uses."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Conv2d | nn.Linear)


def zeroed(layer: M) -> M:
    """The layer with all weights zero, so that a residual branch starts silent."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def normal(*shape: int, std: float) -> nn.Parameter:
    """A parameter of normal random numbers.

    Not by torch.randn: on the meta device that is Python code of PyTorch's, whose imports take seconds.
    """
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))
