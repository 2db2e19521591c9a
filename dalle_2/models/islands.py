"""Which weights stay in float32 where a network computes in fewer digits.

Those of norms, and of modules that say so of themselves: timesteps, captions, and the last step of super-resolution,
whose answer is multiplied by 0.006 before it reaches the picture and so must be large.
"""

import torch
from torch import nn

NORMS = (nn.GroupNorm, nn.LayerNorm)


def dtypes(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of every weight of a model that computes in `dtype`, by name."""
    kept = {
        f"{home}.{name}"
        for home, module in model.named_modules()
        if isinstance(module, NORMS) or getattr(module, "in_float32", False)
        for name in module.state_dict()
    }
    own = model.state_dict()
    return {name: torch.float32 if name in kept else dtype for name, value in own.items() if value.is_floating_point()}
