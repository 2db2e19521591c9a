"""Tensors whose numbers are all there. A file can name one that is larger than itself: by a stride of zero, by a layout
of its own, or by many that share their numbers; filled into a model, each would take the memory that it claims."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dalle_2.weights.listing import listed

SHARED = 4  # tensors that share their numbers, as tied weights do, at most on average


def unfounded(tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with them in this way, in words; nothing for weights as they should be. It reads no numbers."""
    wrong = [name for name, tensor in tensors.items() if not _is_founded(tensor)]
    if wrong:
        return listed("without numbers of their own", wrong)
    stored = {_place(tensor): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    claimed, there = sum(tensor.nbytes for tensor in tensors.values()), sum(stored.values())
    return [f"{claimed:,} bytes where {there:,} are"] if claimed > SHARED * there else []


def _is_founded(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
