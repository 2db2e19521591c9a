"""Does an embedding find the picture that it is meant for, among all of them?"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

TIE = 1e-6  # the cosines of one vector with two equal ones differ in the last digits


class Ranks(NamedTuple):
    """How often the own picture came first, the median of its rank, 1 the best, among `n`; and what chance would give.

    Of pictures that are as close as the own one, half count as closer: embeddings that are all the same find nothing.
    """

    n: int
    first: float
    median: float

    @property
    def chance_first(self) -> float:
        return 1 / self.n

    @property
    def chance_median(self) -> float:
        return (self.n + 1) / 2

    def as_json(self) -> dict[str, Any]:
        """Plain values, chance among them."""
        return {**self._asdict(), "chance_first": self.chance_first, "chance_median": self.chance_median}


def ranks(queries: Float[Tensor, "n d"], pictures: Float[Tensor, "n d"]) -> Ranks:
    """Query k is meant for picture k; both are unit vectors."""
    cosines = queries.double() @ pictures.double().T
    own = cosines.diagonal().unsqueeze(1)
    closer = (cosines > own + TIE).sum(1)
    as_close = ((cosines - own).abs() <= TIE).sum(1) - 1
    first = torch.where(closer == 0, 1 / (1 + as_close), 0.0)
    places = (1 + closer + as_close / 2).double()
    return Ranks(len(queries), first.mean().item(), places.quantile(0.5).item())
