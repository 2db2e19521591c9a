"""Apple's GPU, played by the processor: tensors that say "mps", know no float64 and don't mix with the processor's.

It shows what can be shown without such a device: where tensors lie, what they are made of and who draws the noise. What
a Mac's kernels compute it can't show.
"""

from typing import Any

import torch
from torch import Tensor
from torch.__future__ import set_overwrite_module_params_on_conversion
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps", 0)
MOVING = ("_to_copy", "copy_")  # from one device to another, by definition
PARSES = torch._C._nn._parse_to
# Reading numbers brings them to the processor.
READS = {
    *(Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__),
    *(Tensor.item, Tensor.tolist, Tensor.cpu),
}
ASKING = ("__get__", "_has_compatible_shallow_copy_type")  # what a tensor is, not what its numbers are
DRAWS = ("rand", "normal", "uniform", "bernoulli", "multinomial")
RANDOM = "{} draws random numbers on the device, which are others on every kind of it"
INDEXING = ("index", "index_put", "index_put_", "__getitem__", "__setitem__")  # which takes indices from anywhere


class OnApple(Tensor):
    """A tensor of the device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnApple":
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return played(func, func.overloadpacket.__name__, args, kwargs or {})


def played(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device if it is asked for there or its arguments lie there."""
    leaves = tree_leaves((args, kwargs))
    here = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, OnApple)}
    strangers = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnApple) and x.ndim and not x.is_meta]
    if here and strangers and name not in (*MOVING, *INDEXING):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found mps:0 and cpu")
    wanted = kwargs.get("device")
    on_apple = bool(here) if wanted is None else torch.device(wanted).type == DEVICE.type
    if on_apple and name.startswith(DRAWS) and name != "normalize":
        raise RuntimeError(RANDOM.format(name))
    if wanted is not None and on_apple:
        kwargs = {**kwargs, "device": "cpu"}
    made = func(*_inner(args), **_inner(kwargs))

    def outside(x: Any) -> Any:
        if id(x) in here:  # written in place
            return here[id(x)]
        return OnApple(x) if on_apple and isinstance(x, Tensor) else x

    return tree_map(outside, made)


def _inner(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.inner if isinstance(leaf, OnApple) else leaf, tree)


class Apple(TorchDispatchMode):
    """Inside, "mps" is a device. seen: the operations that it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()
        self.calls = _Calls()

    def __enter__(self) -> "Apple":
        set_overwrite_module_params_on_conversion(True)  # a parameter that is moved becomes another tensor
        self.calls.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.calls.__exit__(*error)
        set_overwrite_module_params_on_conversion(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(leaf, OnApple) for leaf in tree_leaves((args, kwargs))):
            self.seen.add(func)
        return played(func, func.overloadpacket.__name__, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Calls that name the device, which a PyTorch without it refuses before it asks what they would do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS:
            return func(*_inner(args))
        if func is Tensor.new_tensor and isinstance(args[0], OnApple):
            return _moved(torch.tensor(args[1], dtype=args[0].dtype))
        if func is Tensor.to and isinstance(args[1] if len(args) > 1 else None, Tensor):
            args = (args[0], args[1].device, args[1].dtype)
        if func is Tensor.to:
            device, dtype, _, form = PARSES(*args[1:], **kwargs)
            if device is not None and device.type == DEVICE.type:
                return _moved(args[0], dtype, form)
        elif func is not PARSES and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            if func.__name__.startswith("rand"):
                raise RuntimeError(RANDOM.format(func.__name__))
            return _moved(func(*_inner(args), **{**kwargs, "device": "cpu"}))
        elif func.__name__ not in ASKING and any(isinstance(leaf, OnApple) for leaf in tree_leaves((args, kwargs))):
            return played(func, func.__name__, args, kwargs)
        return func(*args, **kwargs)


def _moved(x: Tensor, dtype: torch.dtype | None = None, form: torch.memory_format | None = None) -> Tensor:
    if isinstance(x, OnApple) and dtype in (None, x.dtype):
        return x
    return torch.ops.aten._to_copy.default(x, dtype=dtype, device=DEVICE, memory_format=form)
