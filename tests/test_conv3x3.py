"""The convolution as one matrix product, and which way a convolution takes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers import conv3x3
from dalle_2.models.layers.conv3x3 import Conv3x3
from dalle_2.models.layers.unrolled import unrolled


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SIZES = ((1, 5, 7, 2, 2), (2, 8, 3, 5, 4), (1, 4, 4, 1, 9), (3, 3, 5, 8, 8))


@pytest.mark.parametrize(("batch", "channels", "outputs", "height", "width"), SIZES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_matrix_product_is_the_convolution(
    batch: int, channels: int, outputs: int, height: int, width: int, biased: bool, layout: torch.memory_format
) -> None:
    x, weight = drawn(batch, channels, height, width), drawn(outputs, channels, 3, 3, seed=1)
    weight, x = weight.contiguous(memory_format=layout), x.contiguous(memory_format=torch.channels_last)
    bias = drawn(outputs, seed=2) if biased else None
    exact = F.conv2d(x.double(), weight.double(), bias.double() if biased else None, padding=1)  # type: ignore[union-attr]
    made = unrolled(x, weight, bias)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert (made - exact).abs().max() / exact.abs().max() < 2e-6


def way(conv: Conv3x3, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which function computes it."""
    taken = []
    for name in ("winograd", "unrolled"):
        own = getattr(conv3x3, name)
        monkeypatch.setattr(conv3x3, name, lambda *given, name=name, own=own: (taken.append(name), own(*given))[1])
    made, exact = conv(x), nn.Conv2d.forward(conv, x)
    monkeypatch.undo()
    assert (made - exact).abs().max() <= (2e-6 if x.dtype == torch.float32 else 2e-2) * exact.abs().max()
    return taken[0] if taken else "plain"


def test_each_way_is_taken_where_it_pays_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = Conv3x3(200, 192), drawn(1, 200, 16, 16)
    small = x[..., :12, :12].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert way(conv, x, monkeypatch) == "winograd"
        assert way(conv, small, monkeypatch) == "unrolled"  # fewer positions than channels
        assert way(conv, x[..., :15], monkeypatch) == "plain"  # an odd width
        assert way(Conv3x3(191, 192), drawn(1, 191, 16, 16), monkeypatch) == "plain"
        assert way(conv.bfloat16(), x.bfloat16(), monkeypatch) == "plain"
        assert way(conv, small.bfloat16(), monkeypatch) == "unrolled"
        conv = conv.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert way(conv, x, monkeypatch) == "plain"
            assert conv(x).dtype == conv(small).dtype == torch.bfloat16
    assert way(conv, x, monkeypatch) == way(conv, small, monkeypatch) == "plain"  # gradients are wanted
