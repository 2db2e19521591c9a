"""Tensors of any floating dtype into networks, and networks in any dtype: what `.half()` and its sisters leave.

A network whose weights have fewer digits than float32 computes as a pipeline of that dtype does, under autocast, with
its norms and whatever else says `in_float32` in float32. One in float64 computes in float64. Either answers whoever
samples in float32.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from dalle_2.errors import UsageError
from dalle_2.models.islands import NORMS

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)

FEWER = (torch.float16, torch.bfloat16)
# What the entries of a batch hold; others, such as masks, are taken as they are.
REAL = ("image", "x_t", "x_0", "z_t", "eps", "v", "low_res", "z_img", "z_txt", "text", "z_noise")
WHOLE = ("tokens", "buckets", "dot", "level")


class MixedPrecision(nn.Module):
    """A module of which norms, tables and what says `in_float32` stay in float32 where the rest has fewer digits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Behind `.half()`, `.to(dtype)` and all the others."""
        exact = {id(x) for x in _exact(self)}

        def change(x: Tensor) -> Tensor:
            changed = fn(x)
            return x.to(changed.device) if changed.dtype in FEWER and id(x) in exact else changed

        return super()._apply(change, recurse)  # type: ignore[no-untyped-call]


def buildable(init: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """Of a constructor: what it builds follows PyTorch's default dtype and device as any module, and can be trained.

    In the latter inference mode would have a say. In a default dtype of fewer digits than float32 norms and tables are
    in float32, as after `.half()`.
    """

    @wraps(init)
    def built(self: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with torch.inference_mode(False):
            init(self, *args, **kwargs)
            for x in _exact(self):
                if x.dtype in FEWER:
                    x.data = x.data.float()

    return built


def in_own_precision(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Of a network's method: it takes tensors of any floating dtype, and computes in that of its weights.

    In float32 that is what surrounds it, which may be autocast.
    """

    @wraps(method)
    def computed(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        dtype = weights_dtype(self)
        wide = _wide(dtype)
        given: Any = [_taken(x, wide) for x in args]
        named: Any = {name: _taken(x, wide) for name, x in kwargs.items()}
        if dtype not in FEWER:
            return method(self, *given, **named)
        with own_precision(self):
            return method(self, *given, **named)

    return computed


def own_precision(module: nn.Module) -> torch.autocast:
    """Autocast to the dtype of weights that have fewer digits than float32, and none at all for others."""
    first = next(module.parameters())
    fewer = first.dtype in FEWER
    return torch.autocast(first.device.type, first.dtype if fewer else None, enabled=fewer)


def weights_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that a module's weights are in, as its first one says."""
    return next(module.parameters()).dtype


def has_fewer_digits(module: nn.Module) -> bool:
    """Whether any of a module's weights has fewer digits than float32."""
    return any(parameter.dtype in FEWER for parameter in module.parameters())


def check_learns(model: nn.Module) -> None:
    """Raises UsageError for weights in float16, in which small gradients and an optimiser's sums are nothing, and for
    weights on the meta device, which have no numbers at all."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(
            "weights on the meta device have no numbers to learn: build the model with another default device, or "
            "bring it to one by model.to_empty(device=...) and fill it"
        )
    if any(parameter.dtype == torch.float16 and parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            "weights in float16 lose the small steps that they are to learn by: bring the model to float32 by "
            "model.float(), and on a GPU set dtype='fp16' to compute in float16"
        )


def readable(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A training batch as a model computes with it: real numbers in float32, or in float64 where it is, and whole ones
    in int64.

    Raises UsageError for whole numbers where real ones are expected, such as pictures of 0 ... 255, and the other way.
    """
    wide = _wide(weights_dtype(model))
    for name, x in batch.items():
        _check_kind(name, x)
    return {name: _taken(_whole(x), wide) for name, x in batch.items()}


def _whole(x: Tensor) -> Tensor:
    return x if x.is_floating_point() or x.dtype == torch.bool else x.long()


def _check_kind(name: str, x: Tensor) -> None:
    if name in REAL and not x.is_floating_point():
        raise UsageError(
            f"{name} must hold real numbers, got {x.dtype}: make them floats, and of pictures of 0 ... 255 numbers in "
            "[-1, 1] by x.float() / 127.5 - 1"
        )
    if name in WHOLE and (x.is_floating_point() or x.dtype == torch.bool):
        raise UsageError(f"{name} must hold whole numbers, got {x.dtype}: convert them with {name}.long()")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _taken(x: Any, dtype: torch.dtype) -> Any:
    """A tensor to compute with, and to learn from even if it was made in inference mode; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    x = x.to(dtype) if x.is_floating_point() else x
    return x.clone() if torch.is_grad_enabled() and x.is_inference() else x


def _exact(model: nn.Module) -> Iterator[Tensor]:
    """What keeps its digits, with gradients: norms, what says so of itself, and tables, which are no weights."""
    for module in model.modules():
        whole = isinstance(module, NORMS) or getattr(module, "in_float32", False)
        yield from module.buffers(recurse=whole)
        for x in module.parameters() if whole else ():
            yield x
            if x.grad is not None:
                yield x.grad
