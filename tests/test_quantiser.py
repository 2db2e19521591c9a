"""Buckets for numbers: what they lose, their order, and what can't be buckets."""

import math

import pytest
import torch
from torch import Tensor
from training_rig import noise

from dalle_2.errors import UsageError
from dalle_2.models.quantiser import Buckets, Quantiser, decode, encode, fit, fit_shares

ROWS = 20_000

# What the best possible quantiser of standard normal numbers loses (Max 1960, table I).
BEST = {4: 0.1175, 8: 0.03454, 16: 0.009497, 32: 0.002499}


def normal(rows: int = ROWS) -> Tensor:
    shares = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    return (math.sqrt(2) * torch.erfinv(2 * shares - 1))[:, None]


def two_hills(rows: int = ROWS) -> Tensor:
    x = normal(rows)
    return torch.cat([x[::2] * 0.2 - 3, x[1::2] + 2])


def heavy_tails(rows: int = ROWS) -> Tensor:
    return normal(rows) ** 3


def lost(values: Tensor, buckets: Buckets) -> float:
    return float((decode(encode(values, buckets.edges), buckets.centres) - values).square().mean())


def with_means(values: Tensor, edges: Tensor) -> Buckets:
    """The best that these edges allow."""
    tokens = encode(values, edges)[:, 0]
    count = edges.shape[1] + 1
    total = torch.zeros(count, dtype=torch.float64).index_add(0, tokens, values[:, 0])
    return Buckets(edges, (total / tokens.bincount(minlength=count).clamp(min=1))[None])


@pytest.mark.parametrize("numbers", [normal, two_hills, heavy_tails])
@pytest.mark.parametrize("buckets", [4, 16, 64, 512])
def test_fitted_buckets_lose_less_than_equal_steps_and_equal_shares(numbers, buckets: int) -> None:
    values = numbers()
    steps = torch.linspace(float(values.min()), float(values.max()), buckets + 1, dtype=torch.float64)[None, 1:-1]
    ours = lost(values, fit(values, buckets))
    assert ours < lost(values, with_means(values, steps))
    assert ours < lost(values, with_means(values, fit_shares(values[:, 0], buckets).double()))


@pytest.mark.parametrize("buckets", BEST)
def test_of_normal_numbers_they_lose_hardly_more_than_the_best(buckets: int) -> None:
    assert lost(normal(), fit(normal(), buckets)) == pytest.approx(BEST[buckets], rel=0.07)


@pytest.mark.parametrize("buckets", [2, 5, 64])
def test_an_unfitted_quantiser_is_that_of_normal_numbers(buckets: int) -> None:
    quantiser = Quantiser(3, buckets)
    tokens = quantiser.encode(normal().float().expand(-1, 3))
    unfitted = Buckets(quantiser.edges[:1], quantiser.centres[:1])
    assert lost(normal(), unfitted) <= 1.1 * lost(normal(), fit(normal(), buckets))
    assert torch.equal(tokens[:, 0], tokens[:, 2])
    assert tokens[:, 0].unique().tolist() == list(range(buckets))


def test_a_number_moves_by_less_than_its_bucket_is_wide_and_order_stays() -> None:
    values = torch.cat([two_hills(), normal(), heavy_tails()], dim=1)
    buckets = fit(values, 64)
    tokens = encode(values, buckets.edges)
    again = decode(tokens, buckets.centres)
    low = torch.cat([values.amin(0)[:, None].float(), buckets.edges], dim=1)
    high = torch.cat([buckets.edges, values.amax(0)[:, None].float()], dim=1)
    assert ((again - values).abs() <= decode(tokens, high - low) + 1e-6).all()
    for k in range(3):
        order = values[:, k].argsort()
        assert (tokens[order, k].diff() >= 0).all()
        assert (again[order, k].diff() >= 0).all()
        assert tokens[:, k].unique().tolist() == list(range(64))
    assert torch.equal(encode(again, buckets.edges), tokens)


def test_components_have_buckets_of_their_own() -> None:
    values = noise(1000, 2) * torch.tensor([1.0, 100.0])
    quantiser = Quantiser(2, 32)
    quantiser.set(fit(values, 32))
    again = quantiser.decode(quantiser.encode(values))
    assert ((again - values).std(0) / values.std(0)).max() < 0.06
    beyond = torch.tensor([[-1e9, 1e9]])
    assert quantiser.encode(beyond).tolist() == [[0, 31]]
    assert quantiser.decode(quantiser.encode(beyond)).abs().max() <= values.abs().max()


def test_shares_hold_equally_many() -> None:
    values = heavy_tails()[:, 0]
    tokens = encode(values[:, None], fit_shares(values, 10))[:, 0]
    assert tokens.bincount().tolist() == pytest.approx([ROWS / 10] * 10, abs=2)


@pytest.mark.parametrize("rows", [2, 3, 30])
def test_few_rows_and_one_value_make_buckets_too(rows: int) -> None:
    values = torch.stack([torch.linspace(-1, 1, rows), torch.full((rows,), 0.7)], dim=1)
    buckets = fit(values, 64)
    again = decode(encode(values, buckets.edges), buckets.centres)
    assert torch.allclose(again, values, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "buckets", "words"),
    [
        (noise(5, 2), 1, "numbers need at least 2 buckets, got 1"),
        (noise(1, 2), 4, "buckets are fitted to at least 2 rows, got 1"),
        (noise(5, 2).log(), 4, "can't be fitted to numbers that are not finite"),
    ],
)
def test_what_no_buckets_fit_is_refused(values: Tensor, buckets: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fit(values, buckets)
    with pytest.raises(UsageError, match=words):
        fit_shares(values[:, 0], buckets)


EDGES, CENTRES = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[-0.5, 0.5, 1.5, 2.5]])


@pytest.mark.parametrize(
    ("buckets", "words"),
    [
        (Buckets(EDGES.flip(1), CENTRES), "the edges of component 0 fall: sort them"),
        (Buckets(EDGES * math.inf, CENTRES), "edges and centres of buckets must be finite"),
        (Buckets(EDGES, CENTRES * math.nan), "edges and centres of buckets must be finite"),
        (Buckets(EDGES[:, :2], CENTRES), r"4 buckets of 1 components have edges of shape \(1, 3\), got \(1, 2\)"),
        (Buckets(EDGES.expand(2, -1), CENTRES.expand(2, -1)), "has 4 buckets for each of 1 components, got 4 buckets "
                                                              "for each of 2 components"),
    ],
)  # fmt: skip
def test_what_can_not_be_buckets_is_refused(buckets: Buckets, words: str) -> None:
    quantiser = Quantiser(1, 4)
    before = quantiser.edges.clone()
    with pytest.raises(UsageError, match=words):
        quantiser.set(buckets)
    assert torch.equal(quantiser.edges, before)
    quantiser.set(Buckets(EDGES, CENTRES))
    assert quantiser.encode(torch.tensor([[-9.0], [0.0], [1.9], [2.0]])).flatten().tolist() == [0, 1, 2, 3]
