"""The table of named recipes, and the ways to change one."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from dalle_2.config import override, parse, read_toml
from dalle_2.errors import UsageError
from dalle_2.models.clip import CLIPConfig, TextConfig, VisionConfig
from dalle_2.models.clip_encoding import DEFAULT_CLIP
from dalle_2.models.clip_loading import is_cached
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.prior import PriorConfig
from dalle_2.models.upsampler import UpsamplerConfig
from dalle_2.training.recipe import (
    ClipStage,
    DataSettings,
    DecoderStage,
    PriorStage,
    Recipe,
    RunSettings,
    UpsamplerStage,
)

_TINY = Recipe(
    name="shapes-tiny",
    data=DataSettings(source="shapes", clip_options={"siblings": 4, "seed": 1}, shuffle=False),
    embeddings=100_000,
    clip=ClipStage(
        config=CLIPConfig(
            vision=VisionConfig(image_size=64, patch=16, stem="conv", width=256, depth=2, heads=8),
            text=TextConfig(width=128, depth=3, heads=4, context_length=48),
            embed_dim=256,
        ),
        run=RunSettings(images=250_000, batch=32, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05, ema_halflife=2000),
    ),
    prior=PriorStage(
        config=PriorConfig(target="x_0", dim=256, width=384, depth=6, heads=6, steps=25),
        run=RunSettings(images=400_000, batch=128, lr=1e-3, ema_halflife=10_000),
    ),
    decoder=DecoderStage(
        config=DecoderConfig(
            image_size=64,
            steps=20,
            z_noise=0.1,
            unet=DecoderUNetConfig(
                channels=64, multiples=(1, 2, 3), blocks=1, attention=(1, 2), head_channels=32, patch=4, t_dim=256
            ),
        ),
        run=RunSettings(images=150_000, batch=32, lr=1e-3, ema_halflife=4000),
    ),
    upsampler=UpsamplerStage(
        config=UpsamplerConfig(
            image_size=256,
            low_res_size=64,
            crop=128,
            steps=6,
            corruption=0.05,
            unet=DecoderUNetConfig(
                channels=48, multiples=(1, 2), blocks=1, attention=(), middle_attention=False, context_tokens=0,
                patch=4, t_dim=128, low_res_channels=3,
            ),
        ),
        run=RunSettings(images=15_000, batch=16, lr=1e-3, ema_halflife=1000),
    ),
)  # fmt: skip

PRESETS = {"shapes-tiny": _TINY}
