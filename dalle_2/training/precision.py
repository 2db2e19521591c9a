"""In which dtype a training step computes, and autocast with float32 islands."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from dalle_2.errors import UsageError
from dalle_2.models import placement

DType = Literal["auto", "fp32", "bf16", "fp16"]


def choose_dtype(name: DType, device: torch.device, *, transformer: bool) -> torch.dtype:
    """The autocast dtype, chosen as for sampling. Raises UsageError for fp16 on a CPU, where no step gains from it."""
    if name == "fp16" and device.type == "cpu":
        raise UsageError("fp16 training needs a GPU: on a CPU choose bf16 or fp32")
    return placement.choose_dtype(name, device, trains="transformer" if transformer else "convolutions")


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`; nothing at all for float32."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield
