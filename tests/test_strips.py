"""Residual blocks in strips of rows, against the same blocks on whole maps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig
from dalle_2.models.layers import conv3x3, strips, winograd
from dalle_2.models.layers.residual import ResidualBlock

CL = torch.channels_last


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(*given: Any, **named: Any) -> ResidualBlock:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ResidualBlock(*given, **named).to(memory_format=CL).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("resample", [None, "up"])
@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("fewest", [1, 1000], ids=["short", "plain"])
@pytest.mark.parametrize(("widths", "out"), [((8,), 8), ((8, 4), 16)])
def test_strips_change_nothing(
    resample: Any, scale_shift: bool, fewest: int, widths: tuple[int, ...], out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv3x3, "FEWEST_CHANNELS", fewest)
    made = block(sum(widths), out, 6, scale_shift=scale_shift, resample=resample, groups=2)
    maps = [3 + drawn(2, width, 20, 12, seed=width).contiguous(memory_format=CL) for width in widths]
    embedding = drawn(2, 6, seed=1)
    wanted = made.double()([x.double() for x in maps], embedding.double()).detach()
    made = made.float()
    monkeypatch.setattr(strips, "LEAST", 1)
    with torch.no_grad():
        seen: list[int] = []
        rows = strips.Lines.rows
        monkeypatch.setattr(strips.Lines, "rows", lambda *given: (seen.append(1), rows(*given))[1])
        came = made(list(maps), embedding)
    assert len(seen) > 6
    assert (came - wanted).abs().max() / wanted.abs().max() < 5e-6


def test_they_are_for_large_maps_in_float32_without_gradients() -> None:
    lines = strips.Lines([torch.zeros(1, 64, 512, 512)])
    assert not strips.pays(lines)
    with torch.no_grad():
        assert strips.pays(lines)
        for other in (lines.maps[0].bfloat16(), lines.maps[0][:, :, :100], lines.maps[0][..., 1:]):
            assert not strips.pays(strips.Lines([other]))
        with torch.autocast("cpu", torch.bfloat16):
            assert not strips.pays(lines)


def test_products_of_a_strip_are_rows_of_the_whole() -> None:
    x, weight, bias = drawn(2, 6, 12, 10).contiguous(memory_format=CL), drawn(5, 6, 3, 3, seed=1), drawn(5, seed=2)
    factors = winograd.factors_of(weight, 1)
    strip = winograd.products(x[:, :, 3:9], factors, bias, inside=True)
    assert torch.allclose(strip, winograd.winograd(x, weight, bias)[:, :, 4:8], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("resample", ["conv", "residual"])
def test_maps_that_are_made_again_are_the_same(resample: Any) -> None:
    config = DecoderUNetConfig(
        channels=8, multiples=(1, 2, 2), blocks=2, attention=(0, 2), head_channels=4, z_dim=5, t_dim=6,
        resample=resample,
    )  # fmt: skip
    torch.manual_seed(0)
    network = DecoderUNet(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    given = (drawn(2, 3, 16, 16), drawn(2, 5, seed=1), drawn(2, 6, seed=2))
    wanted, calls = network(*given), []
    network.remakes = True
    network.down[0].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(network(*given), wanted)
    assert len(calls) == 3  # going down, and for two maps that are joined
