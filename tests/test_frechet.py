"""The Fréchet distance against closed forms, and against the definition by another route."""

import pytest
import torch
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.evaluation.frechet import Moments, frechet_distance


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(x: Tensor) -> Tensor:
    """The same rows with mean 0 and covariance 1, exactly."""
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (len(x) - 1))).T


def test_batches_make_no_difference():
    x = rows(50, 4, 0) + 3
    mean, covariance = Moments(x.split(7)).mean_and_covariance()
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(covariance, torch.cov(x.T))


def test_of_diagonal_gaussians_it_is_known():
    """Squared differences of the means and of the standard deviations, summed."""
    x, y = whitened(rows(60, 3, 1)), whitened(rows(40, 3, 2))
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, -3.0])
    wanted = ((scale - 1) ** 2).sum() + (shift**2).sum()
    assert frechet_distance(Moments([x]), Moments([y * scale + shift])) == pytest.approx(float(wanted), abs=1e-9)


def test_of_any_gaussians_it_is_what_the_definition_says():
    x, y = rows(200, 5, 3) @ rows(5, 5, 4), rows(300, 5, 5) @ rows(5, 5, 6) + 1
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    wanted = (x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * root
    assert frechet_distance(Moments([x]), Moments([y])) == pytest.approx(float(wanted), rel=1e-9)
    assert frechet_distance(Moments([y]), Moments([x])) == pytest.approx(float(wanted), rel=1e-9)


def test_the_same_rows_are_no_distance_apart_even_if_few():
    x = rows(4, 16, 7)  # a covariance of rank 3
    assert abs(frechet_distance(Moments([x]), Moments([x.flip(0)]))) < 1e-6


@pytest.mark.parametrize(("x", "reason"), [(rows(1, 3, 8), "at least 2"), (rows(5, 4, 9), "of 4 and of 3")])
def test_what_has_no_distance_is_refused(x: Tensor, reason: str):
    with pytest.raises(UsageError, match=reason):
        frechet_distance(Moments([x]), Moments([rows(5, 3, 10)]))
