"""Models that are built without values: all their weights come from elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)

# What layers fill their new weights with.
FILLS = frozenset(
    {Tensor.zero_, Tensor.fill_, Tensor.normal_, Tensor.uniform_}
    | {value for name, value in vars(nn.init).items() if name.endswith("_") and callable(value)}
)


def empty(build: Callable[[], M]) -> M:
    """A model that is yet to be filled, in float32: it takes no memory, no random numbers and no time."""
    with torch.inference_mode(False), torch.device("meta"), Unfilled():
        return build().float()


def in_memory(build: Callable[[], M]) -> M:
    """A model in float32 on the CPU, whatever PyTorch's defaults are."""
    with torch.inference_mode(False), torch.device("cpu"):
        return build().float()


class Unfilled(TorchFunctionMode):
    """Inside, tensors without memory are not filled.

    There is nothing to fill; but to find that out PyTorch walks through Python code of its own, whose first call loads
    its compiler: thousands of files, which take seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`func` itself, but for what fills such a tensor: that gives the tensor back."""
        if func in FILLS:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@torch.inference_mode(False)
def unfilled(build: Callable[[], M]) -> M:
    """A model in float32 in memory, whose weights hold whatever lay there: all of them are about to be loaded."""
    model = empty(build)
    memory = {name: torch.empty_like(value, device="cpu") for name, value in model.state_dict().items()}
    model.load_state_dict(memory, assign=True)
    return model
