"""Parts whose weights are in memory, or on the device, only while they work; and parts built without any weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Weights = Mapping[str, Tensor]


def empty(build: Callable[[], M]) -> M:
    """A model that is yet to be filled: it takes no memory and no random numbers."""
    with torch.device("meta"):
        return build()


@dataclass(frozen=True, eq=False)
class Shelved:
    """A part that can be built without its weights, and be given them later; called, it is built whole.

    build: the part on the meta device. It refuses settings, names and shapes that don't fit. weights: all that such a
    part wants, by name.
    """

    build: Callable[[], nn.Module]
    weights: Callable[[Any], Weights]

    def __call__(self) -> nn.Module:
        model = self.build()
        model.load_state_dict(self.weights(model), assign=True)
        return model

    def resting(self, device: torch.device) -> nn.Module:
        """The part without weights, which are read whenever it works. A CUDA device has them from the CPU's memory."""
        if device.type == "cuda":
            return resting(self(), device)
        model = self.build()
        return resting(model, device, lambda: self.weights(model))


class Rest:
    """Where a module's weights come from when it works: from `read`, else from where they rest."""

    def __init__(self, device: torch.device, read: Callable[[], Weights] | None) -> None:
        self.device, self.read, self.working = device, read, False

    def weights(self, resting: Weights) -> Weights:
        """Those to work with, on the device."""
        return {name: value.to(self.device) for name, value in (self.read() if self.read else resting).items()}


def resting(model: M, device: torch.device, read: Callable[[], Weights] | None = None) -> M:
    """The model, which from now on is on the device only `at_work`."""
    weights = model.state_dict()
    if read is None:
        model.to(device)  # what is no weight, such as constants, stays there
        model.load_state_dict(weights, assign=True)
    model.rest = Rest(device, read)  # type: ignore[assignment]
    return model


def is_resting(module: nn.Module) -> bool:
    """Whether a module has its weights only `at_work`."""
    return isinstance(getattr(module, "rest", None), Rest)


@contextmanager
def at_work(*modules: object) -> Iterator[None]:
    """Inside, modules that rest have their weights; afterwards they rest again. Others are as they are."""
    with ExitStack() as stack:
        for module in modules:
            rest = getattr(module, "rest", None)
            if isinstance(module, nn.Module) and isinstance(rest, Rest) and not rest.working:
                stack.enter_context(_awake(module, rest))
        yield


@contextmanager
def _awake(module: nn.Module, rest: Rest) -> Iterator[None]:
    with holding(module, rest.weights(module.state_dict())):
        rest.working = True
        try:
            yield
        finally:
            rest.working = False


@contextmanager
def holding(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Inside, the module has these weights in place of its own."""
    own = module.state_dict()
    module.load_state_dict(weights, assign=True)
    try:
        yield
    finally:
        module.load_state_dict(own, assign=True)


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Inside, the module's weights are in float32."""
    wide = {name: value.float() if value.is_floating_point() else value for name, value in module.state_dict().items()}
    with holding(module, wide):
        yield
