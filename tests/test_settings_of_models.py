"""Models are built by a few named settings or by a whole config, and train in reasonable time as they come."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dalle_2
from dalle_2 import Decoder, DecoderConfig, DecoderUNetConfig, Prior, PriorConfig, Upsampler, UpsamplerConfig
from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.upsampler import PAPER_UNET

SETTINGS = [
    "CLIPConfig", "DecoderConfig", "DecoderUNetConfig", "EmbeddingSpace", "LRSchedule", "PriorConfig", "TextConfig",
    "TrainerSettings", "UpsamplerConfig", "VisionConfig",
]  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_classes_come_from_the_package(name: str) -> None:
    assert name in dalle_2.__all__
    assert getattr(dalle_2, name).__name__ == name


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_settings_are_named_beside_T() -> None:
    with torch.device("meta"):
        prior = Prior(1000, target="x_0", dim=32, width=16, depth=1, heads=2)
        decoder = Decoder(500, target="v", image_size=32, unet=DecoderUNetConfig(channels=16))
        upsampler = Upsampler(target="eps", image_size=128, low_res_size=32)
    assert prior.config == PriorConfig(T=1000, target="x_0", dim=32, width=16, depth=1, heads=2)
    assert decoder.config == DecoderConfig(T=500, target="v", image_size=32, unet=DecoderUNetConfig(channels=16))
    assert upsampler.config == UpsamplerConfig(target="eps", image_size=128, low_res_size=32)


@pytest.mark.parametrize("build", [Prior, Decoder, Upsampler])
def test_what_contradicts_or_does_not_exist_is_refused(build: Any) -> None:
    with torch.device("meta"):
        small = {"width": 16, "depth": 1, "heads": 2} if build is Prior else {}
        config = build(20, **small).config
    with pytest.raises(UsageError, match="got T=30 beside a config that says 20: set it in the config alone"):
        build(30, config=config)
    with pytest.raises(UsageError, match="got target='v' beside a config that says"):
        build(20, target="v", config=config)
    with pytest.raises(ConfigError, match="'target' .*'eps', 'x_0' or 'v', got 'noise'"):
        build(20, target="noise")


def test_decoders_and_upsamplers_are_small_unless_told_otherwise() -> None:
    with torch.device("meta"):
        small, large = Decoder(1000), Decoder(1000, unet=DecoderUNetConfig.large())
        enlarging, papers = Upsampler(1000), Upsampler(1000, unet=PAPER_UNET)
    assert 4e6 < parameters(small) < 12e6
    assert 9e7 < parameters(large) < 1.1e8
    assert small.config.unet.attention
    assert small.network.embed_z is not None
    assert parameters(enlarging) < 15e6 < 1e8 < parameters(papers)


def test_a_step_of_two_pictures_is_a_small_amount_of_work() -> None:
    """Counted, not timed: of the large one, 3.6e11 operations took 13 s on two cores with AVX2."""
    decoder = Decoder(1000)
    clean = {"z_img": torch.randn(2, 512), "image": torch.rand(2, 3, 64, 64) * 2 - 1}
    with FlopCounterMode(display=False) as counter:
        decoder.loss(decoder.noised(clean, torch.Generator().manual_seed(0)))["loss"].backward()
    assert counter.get_total_flops() < 3e10
