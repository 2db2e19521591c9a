"""Where numbers begin in memory, which decides how kernels go through them.

Matrix products begin with a few numbers by themselves where a weight lies beside the width of a processor's registers,
and so sum in another order: the last digits differ from those of the same weight at a better place. A weight that is
mapped from a file lies where the file has it, one of PyTorch's own at a multiple of 64 bytes.
"""

from collections.abc import Mapping

from torch import Tensor

ALIGNMENT = 64  # in bytes: the widest registers there are, a line of the cache, and what PyTorch gives
# Of one part's weights: more stay mapped where they lie, since memory is worth more than the last digits.
MOST_COPIED = 256 * 2**20


def aligned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights; those that begin elsewhere than at multiples of 64 bytes are copied to where they do.

    If these take more than `MOST_COPIED` bytes together, all stay where they are, as they do on another device.
    """
    misplaced = {name: value for name, value in weights.items() if not is_aligned(value)}
    if sum(value.nbytes for value in misplaced.values()) > MOST_COPIED:
        return dict(weights)
    return {name: value.clone() if name in misplaced else value for name, value in weights.items()}


def is_aligned(tensor: Tensor) -> bool:
    """Whether kernels of this processor find it at a multiple of 64 bytes; nothing to ask of other devices."""
    return tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0
