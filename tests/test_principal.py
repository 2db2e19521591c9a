"""The directions in which image embeddings differ most."""

import numpy as np
import pytest
import torch

from dalle_2.errors import UsageError
from dalle_2.training.embed import measured_space
from dalle_2.training.principal import principal, spanning

ROWS, DIM, WIDTHS = 5000, 12, [4.0, 3.0, 2.0, 1.0]


def rows_along(hidden: np.ndarray) -> np.ndarray:
    """Embeddings that differ along four hidden directions by known widths, and hardly along the others."""
    rng = np.random.default_rng(0)
    widths = [*WIDTHS, *[0.01] * (DIM - len(WIDTHS))]
    return rng.normal(size=(ROWS, DIM)) * widths @ hidden + 0.5


@pytest.fixture
def hidden() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0]


def test_they_are_found_in_the_order_of_their_widths(hidden: np.ndarray) -> None:
    found = principal(rows_along(hidden), 4)
    assert np.allclose(found @ found.T, np.eye(4), atol=1e-9)
    assert np.abs(np.diag(found @ hidden[:4].T)).min() > 0.99
    assert (found.max(axis=1) == np.abs(found).max(axis=1)).all()


def test_a_space_of_directions_has_one_scale_and_keeps_their_proportions(hidden: np.ndarray) -> None:
    rows = rows_along(hidden)
    space = measured_space(rows, normalised=False, directions=4)
    seen = space.to_model(torch.from_numpy(rows)).numpy()
    assert seen.shape == (ROWS, 4)
    assert np.allclose(seen.mean(0), 0, atol=1e-6)
    assert np.square(seen).mean() == pytest.approx(1, rel=1e-3)
    assert np.allclose(seen.std(0) / seen.std(0)[-1], WIDTHS, rtol=0.05)


@pytest.mark.parametrize("count", [0, DIM + 1])
def test_more_directions_than_there_are_is_refused(hidden: np.ndarray, count: int) -> None:
    with pytest.raises(UsageError, match=f"12 numbers can't keep {count} directions"):
        principal(rows_along(hidden), count)


def test_directions_that_span_need_no_mean(hidden: np.ndarray) -> None:
    rows = rows_along(hidden) + 9 * hidden[7]
    span, centred = spanning(rows, 5), principal(rows, 5)
    assert np.allclose(span @ span.T, np.eye(5), atol=1e-9)
    assert (np.diff((rows @ span.T).var(axis=0)) < 0).all()
    lost, lost_without_mean = (float(np.square(rows - rows @ kept.T @ kept).mean()) for kept in (span, centred))
    assert lost < 1e-3 < 1 < lost_without_mean
    smallest = np.linalg.eigvalsh(rows.T @ rows)[: DIM - 5].sum()
    assert lost == pytest.approx(smallest / rows.size)


@pytest.mark.parametrize(("explained", "count"), [(0.2, 2), (0.7, 3), (0.9, 4), (0.9999, 5), (None, 8)])
def test_no_more_directions_span_than_explain_enough(hidden: np.ndarray, explained: float | None, count: int) -> None:
    rows = rows_along(hidden) + 9 * hidden[7]
    assert len(spanning(rows, 8, explained)) == count
    assert len(spanning(rows, 2, explained)) == 2


def test_no_more_directions_span_than_there_are() -> None:
    rows = np.random.default_rng(0).normal(size=(3, DIM))
    span = spanning(rows, DIM)
    assert len(span) == 3
    assert np.allclose(rows @ span.T @ span, rows)


@pytest.mark.parametrize(("count", "explained"), [(0, None), (3, 0.0), (3, 1.0), (3, -0.5)])
def test_a_span_of_nothing_is_refused(hidden: np.ndarray, count: int, explained: float | None) -> None:
    with pytest.raises(UsageError, match="keep at least 1, explain between 0 and 1"):
        spanning(rows_along(hidden), count, explained)
