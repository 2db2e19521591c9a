"""The training step that both sides of a comparison go through, so that only networks and processes differ.

Noising, forward, backward, clipping of the gradient's norm at 0.5, AdamW (fused), and a moving average of all
weights, at every step. Loading data is not part of it.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

CLIP_NORM = 0.5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TrainingStep:
    """One step a call. `average` is the model with averaged weights."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 3e-4,
        warmup: int = 100,
        decay: float = 0.999,
        dtype: str = "float32",
    ) -> None:
        self.model = model.train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.averaged = [
            a for a, p in zip(self.average.parameters(), model.parameters(), strict=True) if p.requires_grad
        ]
        self.lr, self.warmup, self.decay, self.dtype = lr, warmup, decay, DTYPES[dtype]
        self.device = self.parameters[0].device.type
        self.steps = 0

    def __call__(self, loss: Callable[[], Tensor]) -> float:
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] = self.lr * min(1.0, self.steps / self.warmup)
        with self.autocast():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._move_average()
        return value.item()

    def autocast(self) -> torch.autocast:
        """Weights stay in float32 whatever the dtype of the products."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    @torch.no_grad()
    def _move_average(self) -> None:
        # Short runs need an average that forgets the first steps.
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.averaged, self.parameters, 1 - decay)
