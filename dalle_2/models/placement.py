"""Where a model runs and in which numbers."""

from dataclasses import dataclass

import torch
from torch import nn

from dalle_2.errors import UsageError
from dalle_2.machine import Trained, default_dtype

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """How a pipeline is wished to run, as `Parts` takes it."""

    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    low_memory: bool = False
    compiled: bool = False


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """ "auto" is the first CUDA device, else Apple's, else the CPU. Raises UsageError for a device that isn't here."""
    if name == "auto":
        return next(filter(_present, map(torch.device, ("cuda", "mps", "cpu"))))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device is called {name!r}: say auto, cpu, cuda, cuda:1 or mps") from None
    if not _present(device):
        raise UsageError(f"device {device} isn't available here: say cpu or auto, or see dalle2 doctor")
    return device


def choose_dtype(
    name: str | torch.dtype, device: torch.device, *, trains: Trained | None = None, large: bool = False
) -> torch.dtype:
    """ "auto" is `machine.default_dtype` of the device. Raises UsageError for a dtype that no network runs in."""
    if name == "auto":
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        name = default_dtype(device.type, capability=capability, trains=trains, large=large)
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in DTYPES.values():
        raise UsageError(f"dtype must be auto, {', '.join(DTYPES)}, got {name}")
    return dtype


def lies_on(model: nn.Module, device: torch.device) -> bool:
    """True if a model's first weight is there; asking costs nothing, moving walks through all of its modules."""
    first = next(model.parameters(), None)
    if first is None or first.device.type != device.type:
        return False
    return device.index in (None, first.device.index)


def _present(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type in ("cpu", "xpu")
