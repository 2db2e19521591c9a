"""Models that are built without values: all their weights come from elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dalle_2.errors import CheckpointError, Dalle2Error

M = TypeVar("M", bound=nn.Module)

# What layers fill their new weights with.
FILLS = frozenset(
    {Tensor.zero_, Tensor.fill_, Tensor.normal_, Tensor.uniform_}
    | {value for name, value in vars(nn.init).items() if name.endswith("_") and callable(value)}
)


SPARE = 2**12  # weights beyond those of a file, so that a check by names still says what is missing; built in a second


def empty(build: Callable[[], M], most: int | None = None) -> M:
    """A model that is yet to be filled, in float32: it takes no memory, no random numbers and no time.

    most: how many weights it may have; building ends in `TooMany` beyond.
    """
    with torch.inference_mode(False), torch.device("meta"), Unfilled(most):
        return build().float()


def empty_of(build: Callable[[], M], weights: int, source: str | Path) -> M:
    """`empty` of settings that came with a file of that many weights.

    Raises CheckpointError where they describe more layers than that, and where no such model can be: building is the
    one thing that is done with settings before they are held against the file.
    """
    try:
        return empty(build, weights + SPARE)
    except TooMany:
        raise CheckpointError(
            f"the settings in {source} describe more layers than its {weights} tensors are of: they belong to another "
            "model, or are damaged"
        ) from None
    except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
        if isinstance(error, Dalle2Error):
            raise
        raise CheckpointError(f"the settings in {source} describe no model that can be: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """The first line of a library's message; the error's name where it says nothing."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


class TooMany(Exception):
    """A model has more weights than were allowed for."""


def in_memory(build: Callable[[], M]) -> M:
    """A model in float32 on the CPU, whatever PyTorch's defaults are."""
    with torch.inference_mode(False), torch.device("cpu"):
        return build().float()


class Unfilled(TorchFunctionMode):
    """Inside, tensors without memory are not filled.

    There is nothing to fill; but to find that out PyTorch walks through Python code of its own, whose first call loads
    its compiler: thousands of files, which take seconds. most: how many of them may be made.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`func` itself, but for what fills such a tensor: that gives the tensor back."""
        if func in FILLS:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        if func is torch.empty and self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise TooMany
        return func(*args, **(kwargs or {}))


@torch.inference_mode(False)
def give_memory(model: nn.Module) -> None:
    """Weights in memory, holding whatever lay there, for an `empty` model: all of them are about to be loaded.

    Raises CheckpointError where there isn't so much memory.
    """
    own = model.state_dict()
    try:
        memory = {name: torch.empty_like(value, device="cpu") for name, value in own.items()}
    except (RuntimeError, MemoryError):
        needed = sum(value.nbytes for value in own.values())
        raise CheckpointError(
            f"a {type(model).__name__} of these weights needs {needed / 1e9:.1f} GB of memory, which aren't to be had"
        ) from None
    model.load_state_dict(memory, assign=True)
