"""Training is the same whatever it is called from."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

AUTOCAST_DEVICES = ("cpu", "cuda", "mps")


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """Of a function that learns: inference mode, `no_grad`, autocast and a default device round it have no say in it.

    The last would put an optimiser's own numbers, and the order of a DataLoader, on another device than the rest.
    """

    @wraps(function)
    def calm(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))  # which records gradients, too
            for device in filter(torch.is_autocast_enabled, AUTOCAST_DEVICES):
                stack.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            return function(*args, **kwargs)

    return calm
