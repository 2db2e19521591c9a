"""UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that reuses the next step's call of the network."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.jump import Jump
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.sampler import Move, Noise, Pairs, Sampler, guess


class Seen(NamedTuple):
    """What the network said at an earlier step: its half-log-SNR, and the guess."""

    at: float
    x_0: Tensor


class UniPCSampler(Sampler):
    """One call of the network a step; B(h) = exp(h) - 1 ("bh2"), predicting data.

    order: 1, 2 or 3, of the predictor; the corrector adds one. The first steps, which have fewer before them, and the
    last ones are of lower order, as in diffusers. A `Step` ends where the predictor does, which is what the network
    sees next; the corrector then moves that before the walk goes on.

    Raises UsageError for another order.
    """

    name = "unipc"

    def __init__(self, noise_scheduler: NoiseScheduler, *, order: int = 2) -> None:
        super().__init__(noise_scheduler)
        if order not in (1, 2, 3):
            raise UsageError(f"order must be 1, 2 or 3, got {order!r}")
        self.order = order

    def _walk(self, denoiser: Denoiser, x: Tensor, pairs: Pairs, eta: float, noise: Noise | None) -> Iterator[Move]:
        seen: list[Seen] = []
        before: tuple[Jump, Tensor] | None = None  # the last jump, and the x it started from
        for index, (t, s) in enumerate(pairs):
            jump = Jump.of(self.noise_scheduler, t, s)
            x_0 = guess(denoiser, x, t).x_0
            fresh = Seen(jump.now.half_log_snr, x_0)
            if before is not None:
                x = _multistep(*before, seen, fresh)
            order = min(self.order, index + 1, len(pairs) - index)
            seen = [*seen, fresh][-order:]
            before = jump, x
            x = _multistep(jump, x, seen)
            yield x_0, x


def _multistep(jump: Jump, x: Tensor, seen: Sequence[Seen], fresh: Seen | None = None) -> Tensor:
    """x_s from x_t and the guesses at t and before it; the corrector's step with the one at s as well.

    With B(h) = exp(h) - 1 both are DDIM's step to a guess that is mixed of all of them.
    """
    *earlier, newest = seen if fresh is None else [fresh, *seen]
    ratios = [(other.at - newest.at) / jump.length for other in earlier]
    mixed = newest.x_0
    for weight, ratio, other in zip(_weights(ratios, jump.length), ratios, earlier, strict=True):
        mixed = mixed + weight / ratio * (other.x_0 - newest.x_0)
    return jump.land(x, mixed, jump.kept)


def _weights(ratios: Sequence[float], h: float) -> list[float]:
    """Those that are exact where guesses are polynomials of half-log-SNR (theorem 3.1); a lone one is set to 1/2."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    rows = [[ratio**k for ratio in ratios] for k in range(len(ratios))]
    powers = torch.tensor(rows, dtype=torch.float64, device="cpu")
    moments = torch.tensor(_moments(len(ratios), h), dtype=torch.float64, device="cpu")
    return torch.linalg.solve(powers, moments).tolist()


def _moments(count: int, h: float) -> list[float]:
    """k! h phi_{k+1}(h) / B(h) for k = 1 ... count, at -h since data is predicted."""
    whole = phi = math.expm1(-h)
    moments = []
    for k in range(1, count + 1):
        phi = phi / -h - 1 / math.factorial(k)
        moments.append(phi * math.factorial(k) / whole)
    return moments
