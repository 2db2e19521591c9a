"""Parts that are built without weights, and have them from their first work on or only while they work."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dalle_2.models import turns
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

    @torch.inference_mode(False)  # so that it can learn
    def __call__(self) -> nn.Module:
        model = self.build()
        _put(model, _well_placed(self.weights, model))
        return model

    def resting(self, device: torch.device, *, kept: bool = False) -> nn.Module:
        """The part without weights, which are read when it first works and then kept, or else whenever it works.

        In the latter case a CUDA device has them from the CPU's memory.
        """
        if device.type == "cuda" and not kept:
            return resting(self(), device)
        return _resting(self.build(), Rest(device, partial(_well_placed, self.weights), kept))


def _well_placed(weights: Callable[[nn.Module], Weights], model: nn.Module) -> Weights:
    """The weights of a part, where kernels find them as they find any others."""
    return aligned(weights(model))


class Rest:
    """Where a module's weights come from when it works: from `read`, else from where they rest. kept: for good.

    away: while it works, what rests in their place. over: it has its weights for good.
    """

    def __init__(self, device: torch.device, read: Callable[[nn.Module], Weights] | None, kept: bool) -> None:
        self.device, self.read, self.kept = device, read, kept
        self.away: Weights | None = None
        self.over = False

    def weights(self, module: nn.Module) -> Weights:
        """Those to work with, on the device."""
        weights = self.read(module) if self.read else _own(module)
        return {name: value.to(self.device) for name, value in weights.items()}


def resting(model: M, device: torch.device, read: Callable[[], Weights] | None = None, *, kept: bool = False) -> M:
    """The model, which from now on is on the device only `at_work`, or with `kept` from when it first is.

    A part of it that rests by itself goes on to do so.
    """
    return _resting(model, Rest(device, read and (lambda _: read()), kept))


def _resting(model: M, rest: Rest) -> M:
    if rest.read is None:
        weights = model.state_dict()
        model.to(rest.device)  # what is no weight, such as constants, stays there
        _put(model, weights)
    else:
        for part in model.modules():
            for name, constant in part.named_buffers(recurse=False):
                if not constant.is_meta:
                    setattr(part, name, constant.to(rest.device))
    model.rest = rest  # type: ignore[assignment]
    return model


def is_resting(module: nn.Module) -> bool:
    """Whether a module has its weights only `at_work`, or not yet."""
    return _rest(module) is not None


def whole(model: M) -> M:
    """The model, with all weights that it is to keep."""
    for module in model.modules():
        if (rest := _rest(module)) and rest.kept:
            _wake(module)
    return model


@contextmanager
def at_work(*modules: object) -> Iterator[None]:
    """Inside, modules that rest have their weights; then they rest again, or keep them. Others are as they are.

    Threads may be at work with the same: the last one lays the weights down.
    """
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, nn.Module):
                turns.begin(module)
                stack.callback(_lay_down, module, turns.end)
                _wake(module)
        yield


def lay_down(module: nn.Module) -> None:
    """A module that this thread is at work with rests from now on; it has to be brought `at_work` anew."""
    _lay_down(module, turns.leave)


def _lay_down(module: nn.Module, end: Callable[[nn.Module], None]) -> None:
    end(module)
    if _rest(module) is None:
        return
    with turns.making:
        rest = _rest(module)
        if rest and rest.away is not None and turns.nobody_at(module):
            _put(module, rest.away)
            rest.away = None


def _rest(module: object) -> Rest | None:
    rest = origin(module)
    return None if rest is None or rest.over else rest


def origin(module: object) -> Rest | None:
    """Where a module has, or had, its weights from; None for one that never rested."""
    rest = getattr(module, "rest", None)
    return rest if isinstance(rest, Rest) else None


@torch.inference_mode(False)
def _wake(module: nn.Module) -> None:
    """Gives a module that rests its weights, of which it has none yet; a thread that comes later finds them."""
    if _rest(module) is None:
        return
    with turns.making:
        rest = _rest(module)
        if rest is None or rest.away is not None:
            return
        weights, own = rest.weights(module), module.state_dict()
        _put(module, weights)
        if rest.kept:
            rest.over = True
        else:
            rest.away = {name: own[name] for name in weights}


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
    """Inside, the module's weights are in float32, but for parts of it that rest, and no other thread is at work with
    it."""
    with turns.alone(module):
        own = _own(module).items()
        with holding(module, {name: value.float() if value.is_floating_point() else value for name, value in own}):
            yield


def _own(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights without those of parts that rest by themselves."""
    apart = tuple(f"{name}." for name, part in module.named_modules() if name and is_resting(part))
    return {name: value for name, value in module.state_dict().items() if not name.startswith(apart)}


def _put(module: nn.Module, weights: Weights) -> None:
    with turns.making:  # or what another thread reads for a part within would be lost
        module.load_state_dict({**module.state_dict(), **weights}, assign=True)
