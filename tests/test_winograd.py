"""The short way through a 3 x 3 convolution, against the sum itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers import winograd as short
from dalle_2.models.layers.winograd import Conv3x3, winograd


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SIZES = ((1, 5, 7, 2, 2), (2, 8, 3, 6, 4), (1, 4, 4, 2, 300), (3, 3, 5, 10, 14), (1, 2, 2, 34, 258))


@pytest.mark.parametrize(("batch", "channels", "outputs", "height", "width"), SIZES)
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_convolution(
    batch: int, channels: int, outputs: int, height: int, width: int, biased: bool
) -> None:
    x, weight = drawn(batch, channels, height, width), drawn(outputs, channels, 3, 3, seed=1)
    bias = drawn(outputs, seed=2) if biased else None
    exact = F.conv2d(x.double(), weight.double(), bias.double() if biased else None, padding=1)  # type: ignore[union-attr]
    assert (winograd(x, weight, bias) - exact).abs().max() / exact.abs().max() < 2e-6


def test_a_picture_does_not_hang_on_its_batch() -> None:
    x, weight = drawn(3, 8, 12, 12).contiguous(memory_format=torch.channels_last), drawn(8, 8, 3, 3, seed=1)
    together = winograd(x, weight, None)
    assert together.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(together[1:2], winograd(x[1:2], weight, None))


class Taken(Exception):
    """The short way was taken."""


def takes(conv: Conv3x3, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    def told(*_: object) -> Tensor:
        raise Taken

    monkeypatch.setattr(short, "winograd", told)
    try:
        conv(x)
    except Taken:
        return True
    return False


def test_it_is_taken_where_it_pays_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = Conv3x3(200, 192), drawn(1, 200, 16, 16)
    with torch.no_grad():
        exact = nn.Conv2d.forward(conv.double(), x.double())
        assert (conv.float()(x) - exact).abs().max() / exact.abs().max() < 2e-6
        assert takes(conv, x, monkeypatch)
        assert not takes(conv, x[..., :15], monkeypatch)  # an odd width
        assert not takes(conv, x[:, :, :12], monkeypatch)  # fewer pixels than channels
        assert not takes(conv.double(), x.double(), monkeypatch)
        assert not takes(Conv3x3(191, 192), drawn(1, 191, 16, 16), monkeypatch)
        with torch.autocast("cpu", torch.bfloat16):
            assert not takes(conv.float(), x, monkeypatch)
    assert not takes(conv.float(), x, monkeypatch)  # gradients are wanted
