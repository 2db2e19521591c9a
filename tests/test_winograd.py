"""The short way through a 3 x 3 convolution, against the sum itself."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_2.models.layers import winograd


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SIZES = ((1, 5, 7, 2, 2), (2, 8, 3, 6, 4), (1, 4, 4, 2, 300), (3, 3, 5, 10, 14), (1, 2, 2, 34, 258), (1, 6, 4, 64, 64))


@pytest.mark.parametrize(("batch", "channels", "outputs", "height", "width"), SIZES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(
    batch: int, channels: int, outputs: int, height: int, width: int, biased: bool, layout: torch.memory_format
) -> None:
    x, weight = drawn(batch, channels, height, width), drawn(outputs, channels, 3, 3, seed=1)
    weight = weight.contiguous(memory_format=layout)
    bias = drawn(outputs, seed=2) if biased else None
    exact = F.conv2d(x.double(), weight.double(), bias.double() if biased else None, padding=1)  # type: ignore[union-attr]
    assert (winograd.winograd(x, weight, bias) - exact).abs().max() / exact.abs().max() < 2e-6


def test_large_weights_are_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = drawn(2, 8, 6, 6), drawn(7, 8, 3, 3, seed=1), drawn(7, seed=2)
    at_once = [winograd.winograd(x, weight, given) for given in (bias, None)]
    monkeypatch.setattr(winograd, "MOST", 16 * 8 * 3)
    for given, wanted in zip((bias, None), at_once, strict=True):
        assert torch.allclose(winograd.winograd(x, weight, given), wanted, atol=1e-5)


def test_a_picture_does_not_hang_on_its_batch() -> None:
    x, weight = drawn(3, 8, 12, 12).contiguous(memory_format=torch.channels_last), drawn(8, 8, 3, 3, seed=1)
    together = winograd.winograd(x, weight, None)
    assert together.is_contiguous(memory_format=torch.channels_last)
    # Matrices of another height may be multiplied by another kernel, which sums in another order.
    torch.testing.assert_close(together[1:2], winograd.winograd(x[1:2], weight, None), rtol=0, atol=1e-5)
