"""Parts that are built without weights, and have them from their first work on or only while they work."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dalle_2.weights.aligned import aligned

M = TypeVar("M", bound=nn.Module)
Weights = Mapping[str, Tensor]


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
        _put(model, self.read(model))
        return model

    def read(self, model: nn.Module) -> Weights:
        """The weights of the part, where kernels find them as they find any others."""
        return aligned(self.weights(model))

    def resting(self, device: torch.device, *, kept: bool = False) -> nn.Module:
        """The part without weights, which are read when it first works and then kept, or else whenever it works.

        In the latter case a CUDA device has them from the CPU's memory.
        """
        if device.type == "cuda" and not kept:
            return resting(self(), device)
        model = self.build()
        return resting(model, device, partial(self.read, model), kept=kept)


class Rest:
    """Where a module's weights come from when it works: from `read`, else from where they rest. kept: for good.

    away: while it works, what rests in their place.
    """

    def __init__(self, device: torch.device, read: Callable[[], Weights] | None, kept: bool) -> None:
        self.device, self.read, self.kept = device, read, kept
        self.away: Weights | None = None

    def weights(self, module: nn.Module) -> Weights:
        """Those to work with, on the device."""
        weights = self.read() if self.read else _own(module)
        return {name: value.to(self.device) for name, value in weights.items()}


def resting(model: M, device: torch.device, read: Callable[[], Weights] | None = None, *, kept: bool = False) -> M:
    """The model, which from now on is on the device only `at_work`, or with `kept` from when it first is.

    A part of it that rests by itself goes on to do so.
    """
    if read is None:
        weights = model.state_dict()
        model.to(device)  # what is no weight, such as constants, stays there
        _put(model, weights)
    else:
        for part in model.modules():
            for name, constant in part.named_buffers(recurse=False):
                if not constant.is_meta:
                    setattr(part, name, constant.to(device))
    model.rest = Rest(device, read, kept)  # type: ignore[assignment]
    return model


def is_resting(module: nn.Module) -> bool:
    """Whether a module has its weights only `at_work`, or not yet."""
    return _rest(module) is not None


def whole(model: M) -> M:
    """The model, with all weights that it is to keep."""
    for module in model.modules():
        if (rest := _rest(module)) and rest.kept:
            _keep(module, rest)
    return model


@contextmanager
def at_work(*modules: object) -> Iterator[None]:
    """Inside, modules that rest have their weights; then they rest again, or keep them. Others are as they are."""
    with ExitStack() as stack:
        for module in modules:
            rest = _rest(module)
            if isinstance(module, nn.Module) and rest and rest.away is None:
                if rest.kept:
                    _keep(module, rest)
                else:
                    _wake(module, rest)
                    stack.callback(lay_down, module)
        yield


def lay_down(module: nn.Module) -> None:
    """A module that is at work for a while rests from now on; it has to be brought `at_work` anew."""
    rest = _rest(module)
    if rest and rest.away is not None:
        _put(module, rest.away)
        rest.away = None


def _rest(module: object) -> Rest | None:
    rest = getattr(module, "rest", None)
    return rest if isinstance(rest, Rest) else None


def _keep(module: nn.Module, rest: Rest) -> None:
    _put(module, rest.weights(module))
    del module.rest


def _wake(module: nn.Module, rest: Rest) -> None:
    weights, own = rest.weights(module), module.state_dict()
    rest.away = {name: own[name] for name in weights}
    _put(module, weights)


@contextmanager
def holding(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Inside, the module has these weights in place of its own; those that are not among them are left alone."""
    own = module.state_dict()
    own = {name: own[name] for name in weights}
    _put(module, weights)
    try:
        yield
    finally:
        _put(module, own)


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Inside, the module's weights are in float32, but for parts of it that rest."""
    own = _own(module).items()
    with holding(module, {name: value.float() if value.is_floating_point() else value for name, value in own}):
        yield


def _own(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights without those of parts that rest by themselves."""
    apart = tuple(f"{name}." for name, part in module.named_modules() if name and is_resting(part))
    return {name: value for name, value in module.state_dict().items() if not name.startswith(apart)}


def _put(module: nn.Module, weights: Weights) -> None:
    module.load_state_dict({**module.state_dict(), **weights}, assign=True)
