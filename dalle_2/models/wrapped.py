"""Models inside of wrappers: torch.compile, DataParallel, or one of the caller's own."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from dalle_2.weights.prefixes import WRAPPERS


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that wrappers were put round; one that nothing wraps is given back."""
    while not hasattr(type(model), "loss") and (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    parts = dict(model.named_children())
    return next((parts[name] for name in WRAPPERS if name in parts), None)


def loss_through(wrapper: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss of a batch by way of the wrapper's own call, so that it is compiled, or spread over devices.

    Wrappers know of a model's forward pass alone; so for this one call that is its loss.
    """
    model = unwrapped(wrapper)
    if wrapper is model and model._compiled_call_impl is None:  # of `model.compile()`
        return model.loss(batch)  # type: ignore[operator]
    kind = type(model)
    model.__class__ = _with_loss_for_forward(kind)  # type: ignore[arg-type]
    try:
        losses = wrapper(batch)
    finally:
        model.__class__ = kind
    return {name: value.mean() for name, value in losses.items()}  # DataParallel gathers one a device


@cache  # a compiled model knows its class again, and would be compiled anew for another
def _with_loss_for_forward(kind: type[nn.Module]) -> type[nn.Module]:
    """A class of the same models whose call with a batch gives its loss; the class rather than an attribute of one
    model, because DataParallel's replicas share attributes."""

    def forward(self: Any, *inputs: Any) -> Any:
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return self.loss(inputs[0])
        return kind.forward(self, *inputs)  # CLIP's loss calls CLIP

    return type(kind.__name__, (kind,), {"forward": forward})
