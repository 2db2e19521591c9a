"""Great circles between vectors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_rig import noise

from dalle_2.errors import UsageError
from dalle_2.sampling.interpolation import slerp


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(noise(*shape, seed=seed).double(), dim=-1)


@given(share=st.floats(0, 1), seed=st.integers(0, 1000), dim=st.integers(2, 40))
def test_unit_vectors_stay_unit_vectors_and_the_angle_is_even(share: float, seed: int, dim: int) -> None:
    a, b = unit(1, dim, seed=seed), unit(1, dim, seed=seed + 5000)
    point = slerp(a, b, share)
    assert float(point.norm()) == pytest.approx(1, abs=1e-9)
    whole = math.acos(max(-1.0, min(1.0, float((a * b).sum()))))
    passed = math.acos(max(-1.0, min(1.0, float((a * point).sum()))))
    assert passed == pytest.approx(share * whole, abs=1e-6)


def test_the_ends_are_the_given_ones() -> None:
    a, b = noise(3, 4, 5), 2 * noise(3, 4, 5, seed=1)
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-6)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)


def test_lengths_go_evenly_and_each_row_has_its_share() -> None:
    a, b = unit(3, 6).float(), 3 * unit(3, 6, seed=1).float()
    lengths = slerp(a, b, torch.tensor([0.0, 0.5, 1.0])).norm(dim=1)
    assert lengths.tolist() == pytest.approx([1, 2, 3], abs=1e-5)


def test_noise_between_noises_has_the_variance_of_noise() -> None:
    middle = slerp(noise(1, 3, 64, 64), noise(1, 3, 64, 64, seed=1), 0.5)
    assert float(middle.std()) == pytest.approx(1, abs=0.02)


def test_nearly_equal_vectors_keep_their_digits() -> None:
    a = unit(1, 8)
    b = torch.nn.functional.normalize(a + 1e-9 * unit(1, 8, seed=1), dim=-1)
    assert torch.allclose(slerp(a, b, 0.5), a, atol=1e-8)
    assert torch.equal(slerp(a, a, 0.3), a)


@pytest.mark.parametrize(
    ("a", "b", "share", "message"),
    [
        (unit(1, 4), unit(1, 4, seed=1), 1.2, "from 0 to 1, got 1.2"),
        (unit(1, 4), unit(1, 4, seed=1), float("nan"), "from 0 to 1"),
        (unit(1, 4), -unit(1, 4), 0.5, "opposite"),
        (torch.zeros(1, 4), unit(1, 4).float(), 0.5, "length 0"),
    ],
)
def test_what_has_no_way_between_is_refused(a: torch.Tensor, b: torch.Tensor, share: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        slerp(a, b, share)
