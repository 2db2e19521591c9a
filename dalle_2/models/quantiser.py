"""Real numbers as bucket numbers and back, with buckets of its own for every component of an embedding."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dalle_2.errors import UsageError

POINTS = 4096  # how finely a component's distribution is read
TINY = 1e-300  # instead of a division by nothing


class Buckets(NamedTuple):
    """edges: between neighbouring buckets, rising; the outermost are open. centres: what a bucket stands for."""

    edges: Float[Tensor, "k inner"]
    centres: Float[Tensor, "k buckets"]


class Quantiser(nn.Module):
    """The buckets of `components` numbers, stored with the weights.

    Until it is fitted they are those of standard normal numbers, which whitened embeddings resemble.
    Raises UsageError for fewer than two buckets.
    """

    edges: Tensor
    centres: Tensor

    def __init__(self, components: int, buckets: int) -> None:
        super().__init__()
        with torch.device("cpu"):  # they are computed even where the model has shapes only
            normal = fit(_normal_quantiles(buckets), buckets)
        self.register_buffer("edges", normal.edges.expand(components, -1).clone())
        self.register_buffer("centres", normal.centres.expand(components, -1).clone())

    def encode(self, values: Float[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        """The bucket of every number, 0 ... buckets - 1; larger numbers never lie in lower ones."""
        return encode(values, self.edges)

    def decode(self, tokens: Int[Tensor, "b n"], first: int = 0) -> Float[Tensor, "b n"]:
        """What the buckets of the components `first`, `first + 1`, ... stand for."""
        return decode(tokens, self.centres[first : first + tokens.shape[1]])

    @torch.no_grad()
    def set(self, buckets: Buckets) -> None:
        """Takes over buckets. Raises UsageError for those of other shapes, not finite, or in no rising order."""
        check(buckets)
        wanted, came = tuple(self.centres.shape), tuple(buckets.centres.shape)
        if came != wanted:
            raise UsageError(f"this quantiser has {_words(wanted)}, got {_words(came)}: fit them to these embeddings")
        self.edges.copy_(buckets.edges)
        self.centres.copy_(buckets.centres)


def encode(values: Float[Tensor, "b k"], edges: Float[Tensor, "k inner"]) -> Int[Tensor, "b k"]:
    """The bucket of every number; a number on an edge lies above it."""
    columns = values.to(edges.dtype).T.contiguous()
    return torch.searchsorted(edges, columns, right=True).T


def decode(tokens: Int[Tensor, "b k"], centres: Float[Tensor, "k buckets"]) -> Float[Tensor, "b k"]:
    """What the buckets stand for."""
    return centres.gather(1, tokens.T).T


def fit(values: Float[Tensor, "n k"], buckets: int) -> Buckets:
    """Buckets that lose as little as possible in the mean square.

    Equal steps from the lowest to the highest number waste buckets on the tails, equal shares of the numbers leave the
    tails to a few wide ones. Least is lost, for many buckets, if they lie as densely as the cube root of the numbers'
    density (Panter and Dite 1951), and of a bucket the mean of its numbers loses least. For normal numbers that comes
    within a few per cent of the best there is (Max 1960) from four buckets up; tests compare all three.

    Raises UsageError for fewer than two buckets or rows, and numbers that are not finite.
    """
    _check_numbers(values, buckets)
    points = _quantiles(values, min(len(values), POINTS + 1))
    edges = _even(points, points.diff(dim=1).pow(2 / 3), buckets)
    return Buckets(edges.float(), _means(values.double(), edges).float())


def fit_shares(values: Float[Tensor, "n"], buckets: int) -> Float[Tensor, "1 inner"]:
    """Edges between buckets that hold equally many of the numbers. Raises UsageError as `fit` does."""
    _check_numbers(values[:, None], buckets)
    return _quantiles(values[:, None], buckets + 1)[:, 1:-1].float()


def check(buckets: Buckets) -> None:
    """Raises UsageError for edges and centres that can't be buckets."""
    edges, centres = buckets
    if not (edges.isfinite().all() and centres.isfinite().all()):
        raise UsageError("edges and centres of buckets must be finite: fit them to embeddings that are")
    if edges.shape != (len(centres), centres.shape[1] - 1):
        raise UsageError(
            f"{centres.shape[1]} buckets of {len(centres)} components have edges of shape "
            f"{(len(centres), centres.shape[1] - 1)}, got {tuple(edges.shape)}"
        )
    falling = (edges.diff(dim=1) < 0).any(dim=1)
    if falling.any():
        raise UsageError(f"the edges of component {int(falling.int().argmax())} fall: sort them, lowest first")


def _quantiles(values: Float[Tensor, "n k"], count: int) -> Float[Tensor, "k {count}"]:
    """Numbers of each column at equal steps of their rank, the lowest and the highest among them."""
    ordered = values.double().sort(dim=0).values
    ranks = torch.linspace(0, len(values) - 1, count, dtype=torch.float64, device=values.device)
    low = ranks.floor().long()
    return torch.lerp(ordered[low], ordered[ranks.ceil().long()], (ranks - low)[:, None]).T.contiguous()


def _even(points: Float[Tensor, "k m"], weights: Float[Tensor, "k gaps"], buckets: int) -> Float[Tensor, "k inner"]:
    """The numbers that divide the weights, which lie between neighbouring points, into equal parts.

    Between two quantiles of mass 1/m at a distance w the density is 1/(m w), so the integral of its cube root there
    goes with w to the power of two thirds. Points that are all the same are edges, too.
    """
    share = nn.functional.pad(weights.cumsum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=TINY), (1, 0))
    wanted = torch.arange(1, buckets, dtype=share.dtype, device=share.device) / buckets
    above = torch.searchsorted(share, wanted.expand(len(share), -1).contiguous()).clamp(1, share.shape[1] - 1)
    (low, high), (a, b) = ((row.gather(1, above - 1), row.gather(1, above)) for row in (share, points))
    return a + (b - a) * ((wanted - low) / (high - low).clamp(min=TINY)).clamp(0, 1)


def _means(values: Float[Tensor, "n k"], edges: Float[Tensor, "k inner"]) -> Float[Tensor, "k buckets"]:
    """The mean of the numbers in every bucket, and half-way between its edges where there are none."""
    tokens, columns = encode(values, edges).T, values.T
    outer = nn.functional.pad(edges[:, None], (1, 1), mode="replicate")[:, 0]
    between = (outer[:, :-1] + outer[:, 1:]) / 2
    count = torch.zeros_like(between).scatter_add(1, tokens, torch.ones_like(columns))
    total = torch.zeros_like(between).scatter_add(1, tokens, columns)
    return torch.where(count > 0, total / count.clamp(min=1), between)


def _normal_quantiles(buckets: int) -> Float[Tensor, "n 1"]:
    """Standard normal numbers at equal shares, in double precision; enough of them for so many buckets."""
    count = max(16 * buckets, 4 * POINTS)
    share = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count
    return math.sqrt(2) * torch.erfinv(2 * share - 1)[:, None]


def _check_numbers(values: Float[Tensor, "n k"], buckets: int) -> None:
    if buckets < 2:
        raise UsageError(f"numbers need at least 2 buckets, got {buckets}")
    if len(values) < 2:
        raise UsageError(f"buckets are fitted to at least 2 rows, got {len(values)}")
    if not values.isfinite().all():
        raise UsageError("buckets can't be fitted to numbers that are not finite: check the embeddings")


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} buckets for each of {shape[0]} components"
