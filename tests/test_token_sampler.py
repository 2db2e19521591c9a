"""The next token: with what probability each comes, and that a draw is what its number says."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from training_rig import generator, noise

from dalle_2.errors import UsageError
from dalle_2.sampling.token_sampler import TokenSampler, log_exponentials

transformers = pytest.importorskip("transformers.generation.logits_process")


def shares_of(sampler: TokenSampler, logits: Tensor) -> Tensor:
    return sampler.restricted(logits).softmax(1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 8, "top_p": 0.7}],
)
def test_each_token_is_drawn_as_often_as_it_is_likely(settings: dict[str, Any]) -> None:
    sampler, logits, count = TokenSampler(**settings), 2 * noise(1, 12), 40_000
    tokens = sampler.choose(logits.expand(count, -1), log_exponentials([generator(3)], count, 12)[0])
    drawn, wanted = tokens.bincount(minlength=12), count * shares_of(sampler, logits)[0]
    possible = wanted > 0
    assert (drawn[~possible] == 0).all()
    chi_square = float(((drawn - wanted)[possible] ** 2 / wanted[possible]).sum())
    assert chi_square < 31.3  # of at most 11 degrees of freedom, one in a thousand


def test_what_differs_in_the_last_digit_is_drawn_alike() -> None:
    """Which the inverse of the cumulative probabilities would not do with so many tokens."""
    logits, chance = noise(300, 1024), log_exponentials([generator(s) for s in range(300)], 1024)
    other = logits + 1e-6 * noise(300, 1024, seed=1)
    assert torch.equal(TokenSampler().choose(logits, chance), TokenSampler().choose(other, chance))


def test_without_settings_the_probabilities_are_the_softmax() -> None:
    logits = 3 * noise(4, 9)
    assert torch.allclose(shares_of(TokenSampler(), logits), logits.softmax(1))
    assert torch.allclose(shares_of(TokenSampler(temperature=0.7), logits), (logits / 0.7).softmax(1))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("top_k", [None, 1, 5, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_the_settings_mean_what_they_mean_in_transformers(temperature: float, top_k: int | None, top_p: float) -> None:
    logits = 2 * noise(6, 20)
    theirs = transformers.TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    if top_k is not None:
        theirs = transformers.TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = transformers.TopPLogitsWarper(top_p)(None, theirs)
    ours = shares_of(TokenSampler(temperature, top_k, top_p), logits)
    assert torch.allclose(ours, theirs.softmax(1), atol=1e-6)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-9}])
def test_the_limits_are_greedy(settings: dict[str, Any]) -> None:
    logits = noise(200, 30)
    assert torch.equal(
        TokenSampler(**settings).choose(logits, log_exponentials([generator()], 200, 30)[0]), logits.argmax(1)
    )
    shares = shares_of(TokenSampler(**settings), logits)
    assert torch.allclose(shares, torch.nn.functional.one_hot(logits.argmax(1), 30).float(), atol=1e-3)


@pytest.mark.parametrize("mass", [0.2, 0.5, 0.95])
def test_top_p_keeps_the_fewest_tokens_that_have_the_mass(mass: float) -> None:
    shares = (3 * noise(50, 40)).softmax(1)
    kept = shares_of(TokenSampler(top_p=mass), shares.log()) > 0
    for row, chosen in zip(shares, kept, strict=True):
        assert row[chosen].sum() >= mass - 1e-6
        assert row[chosen].sum() - row[chosen].min() < mass
        assert row[chosen].min() >= row[~chosen].max()


def test_top_k_keeps_no_more_than_it_says_even_of_equal_tokens() -> None:
    assert int((shares_of(TokenSampler(top_k=4), torch.zeros(3, 9)) > 0).sum()) == 3 * 4


def test_noise_is_exponential_and_read_in_turn_from_a_generator_named_twice() -> None:
    one, other = generator(1), generator(2)
    rows = log_exponentials([one, one, other], 500, 4)
    assert (rows.shape, rows.dtype) == ((3, 500, 4), torch.float32)
    again = generator(1)
    assert torch.equal(rows[:2], log_exponentials([again, again], 500, 4))
    assert torch.equal(rows[2:], log_exponentials([generator(2)], 500, 4))
    numbers = rows.exp().flatten()
    assert float(numbers.mean()) == pytest.approx(1, abs=0.06)
    assert float((numbers > 2).float().mean()) == pytest.approx(math.exp(-2), abs=0.02)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "temperature must be a number from 0 up, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a number from 0 up, got nan"),
        ({"temperature": math.inf}, "temperature must be a number from 0 up, got inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_k": True}, "top_k must be at least 1, got True"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1, got 1.01"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TokenSampler(**settings)
