"""The DALL·E 2 paper's models at their own size (arXiv 2204.06125, appendix C, table 3), with their optimisers.

What the table leaves open is filled in from the works it builds on: GLIDE's U-Net with residual resampling and learned
variance, CLIP's vocabulary of 49,408 tokens, and a published CLIP ViT-H, whose embeddings have 1024 numbers as the
paper's.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from dalle_2.models.autoregressive_prior import AutoregressivePriorConfig
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.models.prior import PriorConfig
from dalle_2.models.upsampler import UpsamplerConfig
from dalle_2.training.recipe import (
    AutoregressivePriorStage,
    ClipStage,
    DataSettings,
    DecoderStage,
    PriorStage,
    Recipe,
    RunSettings,
    UpsamplerStage,
)

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
Z_DIM, VOCABULARY = 1024, 49_408
AR_NOTE = "1.3 B of these are the text encoder of the paper's table, 0.8 B the prior behind it"


class Stated(NamedTuple):
    """What the paper says of a model: its stage here, its number of parameters, and how it is sampled. note: why that
    number differs from the one of the table's widths, where they are far apart."""

    stage: str
    parameters: str
    steps: int | None
    variance: str
    note: str = ""


def _run(
    lr: float, batch: int, iterations: int, betas: tuple[float, float], eps: float, decay: float, ema: float = 0.9999
) -> RunSettings:
    """An optimiser as the table states it. ema: the decay a step, which becomes a half-life in pictures."""
    halflife = batch * math.log(0.5) / math.log(ema)
    return RunSettings(
        images=batch * iterations, batch=batch, optimizer="adamw", lr=lr, betas=betas, eps=eps,
        weight_decay=decay, warmup=0, ema_halflife=round(halflife),
    )  # fmt: skip


def _text(depth: int) -> TextConfig:
    """A text encoder of the table; of depth 0 where the transformer behind it reads the tokens itself."""
    return TextConfig(
        width=2048, depth=depth, heads=32, vocab_size=VOCABULARY, context_length=256, eos_id=VOCABULARY - 1
    )


def _upsampler(channels: int, depth: int, multiples: tuple[int, ...], dropout: float) -> DecoderUNetConfig:
    return DecoderUNetConfig(
        channels=channels, blocks=depth, multiples=multiples, attention=(), middle_attention=False, context_tokens=0,
        low_res_channels=3, z_dim=0, t_dim=4 * channels, dropout=dropout, resample="residual",
    )  # fmt: skip


PAPER_RECIPE = Recipe(
    name="paper",
    data=DataSettings(source="."),
    clip=ClipStage(encoder=CLIP_H),
    prior=PriorStage(
        caption="own",
        text=_text(0),
        config=PriorConfig(
            schedule="cosine", target="x_0", sigma_data=None, dim=Z_DIM, width=2048, depth=24, heads=32, drop=0.1,
            steps=64, candidates=2,
        ),
        run=_run(1.1e-4, 4096, 600_000, (0.9, 0.96), 1e-6, 6e-2),
    ),
    prior_ar=AutoregressivePriorStage(
        caption="own",
        text=_text(24),
        directions=319,
        config=AutoregressivePriorConfig(dim=Z_DIM, width=1664, depth=24, heads=26, buckets=1024, drop=0.1),
        run=_run(1.6e-4, 4096, 1_000_000, (0.9, 0.91), 1e-10, 4e-2, ema=0.999),
    ),
    decoder=DecoderStage(
        caption="own",
        text=_text(24),
        config=DecoderConfig(
            schedule="cosine", target="eps", sigma_data=None, drop=0.1, caption_drop=0.5, learned_variance=True,
            steps=250,
            unet=DecoderUNetConfig(
                channels=512, multiples=(1, 2, 3, 4), blocks=3, attention=(1, 2, 3), head_channels=64, dropout=0.1,
                out_channels=6, z_dim=Z_DIM, t_dim=2048, context_tokens=4, resample="residual",
            ),
        ),
        run=_run(1.2e-4, 2048, 800_000, (0.9, 0.999), 1e-8, 0.0),
    ),
    upsampler=UpsamplerStage(
        config=UpsamplerConfig(
            schedule="cosine", target="eps", sigma_data=None, image_size=256, low_res_size=64, crop=64, drop=0.0,
            steps=27, unet=_upsampler(320, 3, (1, 2, 3, 4), 0.1),
        ),
        run=_run(1.2e-4, 1024, 1_000_000, (0.9, 0.999), 1e-8, 0.0),
    ),
    upsampler_2=UpsamplerStage(
        config=UpsamplerConfig(
            schedule="linear", target="eps", sigma_data=None, image_size=1024, low_res_size=256, crop=256, drop=0.0,
            steps=15, degradation="bsr", unet=_upsampler(192, 2, (1, 1, 2, 2, 4, 4), 0.0),
        ),
        run=_run(1.0e-4, 512, 1_000_000, (0.9, 0.999), 1e-8, 0.0),
    ),
)  # fmt: skip

PAPER: Mapping[str, Stated] = {
    "paper-prior-ar": Stated("prior_ar", "1 B", None, "token by token", AR_NOTE),
    "paper-prior-diffusion": Stated("prior", "1 B", 64, "Analytic-DPM"),
    "paper-decoder-64": Stated("decoder", "3.5 B", 250, "learned"),
    "paper-upsampler-256": Stated("upsampler", "700 M", 27, "DDIM"),
    "paper-upsampler-1024": Stated("upsampler_2", "300 M", 15, "DDIM"),
}
