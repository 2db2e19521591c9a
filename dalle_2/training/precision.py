"""In which dtype a training step computes: measured defaults, and autocast with float32 islands."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from dalle_2.errors import UsageError
from dalle_2.machine import default_dtype

DType = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_dtype(name: DType, device: torch.device, *, transformer: bool) -> torch.dtype:
    """The autocast dtype. `auto`: bfloat16 on CUDA, and on a CPU with the instructions for it where transformers
    gain from it and small U-Nets do not; float32 elsewhere. Raises UsageError for fp16 on a CPU."""
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UsageError("fp16 training needs a GPU: on a CPU choose bf16 or fp32")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    fast = device.type == "cpu" and transformer and default_dtype("cpu") == "bfloat16"
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`; nothing at all for float32."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield
