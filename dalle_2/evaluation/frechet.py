"""The Fréchet distance between two sets of feature vectors; on Inception's it is known as FID (Heusel et al. 2017)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from dalle_2.errors import UsageError


class Moments:
    """Mean and covariance of rows that come in batches, summed in float64."""

    def __init__(self, batches: Iterable[Float[Tensor, "_ d"]] = ()) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None
        for batch in batches:
            self.add(batch)

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Takes more rows into account."""
        rows = rows.detach().to("cpu", torch.float64)
        self.count += len(rows)
        self._sum = rows.sum(0) + (0 if self._sum is None else self._sum)
        self._products = rows.T @ rows + (0 if self._products is None else self._products)

    def mean_and_covariance(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
        """The mean, and the covariance divided by count - 1. Raises UsageError for fewer than two rows."""
        if self._sum is None or self._products is None or self.count < 2:
            raise UsageError(f"a covariance needs at least 2 pictures, got {self.count}")
        mean = self._sum / self.count
        return mean, (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), of the Gaussians with those moments.

    Raises UsageError for fewer than two rows on a side, or rows of different lengths.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a.mean_and_covariance(), b.mean_and_covariance()
    if len(mean_a) != len(mean_b):
        raise UsageError(f"features of {len(mean_a)} and of {len(mean_b)} numbers can't be compared")
    # S_a S_b has the eigenvalues of root(S_a) S_b root(S_a), which is symmetric and so never leaves the real numbers.
    root = _root(cov_a)
    product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0)
    apart = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * product.sqrt().sum()
    return float(apart)


def _root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The square root of a covariance, whose smallest eigenvalues may be rounded below zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
