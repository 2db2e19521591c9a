"""The next token: with what probability each comes, and that a draw is what its number says."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from training_rig import generator, noise

from dalle_2.errors import UsageError
from dalle_2.sampling.token_sampler import TokenSampler, uniforms

transformers = pytest.importorskip("transformers.generation.logits_process")


def evenly(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 8, "top_p": 0.7}],
)
def test_evenly_spread_numbers_draw_each_token_as_often_as_it_is_likely(settings: dict[str, Any]) -> None:
    sampler, logits = TokenSampler(**settings), 2 * noise(1, 12)
    count = 10_000
    drawn = sampler.choose(logits.expand(count, -1), evenly(count)).bincount(minlength=12)
    wanted = count * sampler.probabilities(logits.double())[0]
    assert (drawn - wanted).abs().max() <= 1
    assert (drawn[wanted == 0] == 0).all()


def test_without_settings_the_probabilities_are_the_softmax() -> None:
    logits = 3 * noise(4, 9)
    assert torch.allclose(TokenSampler().probabilities(logits), logits.softmax(1))
    assert torch.allclose(TokenSampler(temperature=0.7).probabilities(logits), (logits / 0.7).softmax(1))


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
    ours = TokenSampler(temperature, top_k, top_p).probabilities(logits)
    assert torch.allclose(ours, theirs.softmax(1), atol=1e-6)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-9}])
def test_the_limits_are_greedy(settings: dict[str, Any]) -> None:
    logits = noise(200, 30)
    assert torch.equal(TokenSampler(**settings).choose(logits, torch.rand(200)), logits.argmax(1))
    shares = TokenSampler(**settings).probabilities(logits)
    assert torch.allclose(shares, torch.nn.functional.one_hot(logits.argmax(1), 30).float(), atol=1e-3)


@pytest.mark.parametrize("mass", [0.2, 0.5, 0.95])
def test_top_p_keeps_the_fewest_tokens_that_have_the_mass(mass: float) -> None:
    shares = (3 * noise(50, 40)).softmax(1)
    kept = TokenSampler(top_p=mass).probabilities(shares.log()) > 0
    for row, chosen in zip(shares, kept, strict=True):
        assert row[chosen].sum() >= mass - 1e-6
        assert row[chosen].sum() - row[chosen].min() < mass
        assert row[chosen].min() >= row[~chosen].max()


def test_top_k_keeps_no_more_than_it_says_even_of_equal_tokens() -> None:
    assert int((TokenSampler(top_k=4).probabilities(torch.zeros(3, 9)) > 0).sum()) == 3 * 4


def test_the_ends_of_the_unit_interval_are_tokens_that_can_be_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(2, -1)
    assert TokenSampler().choose(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_numbers_are_read_in_turn_from_a_generator_named_twice() -> None:
    one, other = generator(1), generator(2)
    rows = uniforms([one, one, other], 5)
    assert (rows.shape, rows.dtype) == ((3, 5), torch.float64)
    assert torch.equal(rows[:2].flatten(), uniforms([generator(1)], 10)[0])
    assert torch.equal(rows[2:], uniforms([generator(2)], 5))
    assert 0 <= rows.min() <= rows.max() < 1


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
