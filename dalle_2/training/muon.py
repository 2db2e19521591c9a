"""Muon (Jordan et al. 2024) for matrices and kernels, AdamW for everything else, as one optimiser.

Muon replaces the momentum of a matrix by the nearest orthogonal one, so that all its directions learn alike. The small
networks here need half the pictures that AdamW needs. Steps are scaled to AdamW's usual size (Liu et al. 2025,
section 2.2), so one learning rate serves both.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SCALE = 0.2  # the root mean square of AdamW's usual update


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal=True` hold matrices or kernels and step by Muon, the other groups by AdamW.

    momentum: Muon's; betas, eps: AdamW's. weight_decay is decoupled in both. dtype: what matrices are made orthogonal
    in; bfloat16 where the hardware multiplies it fast.
    """

    # PyTorch's own without its decorator, which at the first call loads the compiler, thousands of files, only to keep
    # it away from them.
    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults | {"orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; a closure is not supported."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if with_gradient:
                (self._muon if group["orthogonal"] else self._adamw)(with_gradient, group)

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        alike: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            alike[p.flatten(1).shape].append(p)
        for shape, members in alike.items():
            momenta = torch.stack([self._momentum(p, group["momentum"]).flatten(1) for p in members])
            update = orthogonal(momenta, self.dtype)
            size = group["lr"] * SCALE * max(shape) ** 0.5
            torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
            for p, direction in zip(members, update, strict=True):
                p.add_(direction.view(p.shape).to(p.dtype), alpha=-size)

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum of the gradient, in float32."""
        gradient = p.grad.float()  # type: ignore[union-attr]
        state = self.state[p]
        if "average" not in state:
            state["average"] = torch.zeros_like(gradient)
        average = state["average"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] |= {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(g: Float[Tensor, "k m n"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "k m n"]:
    """Matrices in float32 with the singular vectors of `g` and singular values near 1.

    By Newton and Schulz's iteration, computed in `dtype`.
    """
    if g.shape[1] > g.shape[2]:
        return orthogonal(g.mT, dtype).mT
    g = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    return _in_float32(g.float()) if dtype == torch.float32 else _iterated(g.to(dtype)).float()


def _iterated(x: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """The iteration as it is written, which forgives the rounding of a smaller dtype."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _in_float32(g: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """The same with fewer products.

    The iterate is a polynomial of g gᵀ times g, and that square matrix is small: so the polynomial is iterated and
    multiplied with `g` once at the end, which for kernels costs a third of iterating on `g` itself.
    """
    square = g @ g.mT
    whole = factor = _polynomial(square)
    for _ in range(ITERATIONS - 1):
        square = factor @ square @ factor
        factor = _polynomial(square)
        whole = factor @ whole
    return whole @ g


def _polynomial(square: Float[Tensor, "k m m"]) -> Float[Tensor, "k m m"]:
    """a + b s + c s², what one iteration multiplies with."""
    a, b, c = COEFFICIENTS
    result = torch.baddbmm(b * square, square, square, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result
