"""The models of the DALL·E 2 paper at their own size (arXiv 2204.06125, appendix C, table 3), with their optimisers.

What the table leaves open is filled in from the works it builds on: GLIDE's U-Net with residual resampling and learned
variance, CLIP's vocabulary of 49,408 tokens, and embeddings of 1024 numbers, those of the paper's ViT-H/16.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from dalle_2.config import Settings
from dalle_2.errors import UsageError
from dalle_2.models.checkpoints import build
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.models.prior import PriorConfig
from dalle_2.models.upsampler import UpsamplerConfig
from dalle_2.training.recipe import RunSettings

Z_DIM, VOCABULARY = 1024, 49_408


@dataclass(frozen=True)
class PaperModel:
    """One column of the table. stated: the paper's own number of parameters. iterations: optimiser steps.

    sampling_steps, sampling_variance: as the paper samples it.
    """

    kind: str
    config: Settings
    run: RunSettings
    stated: str
    iterations: int
    sampling_steps: int | None
    sampling_variance: str

    def on_meta(self) -> nn.Module:
        """The model with shapes and no memory."""
        with torch.device("meta"):
            return build(self.kind, self.config.model_dump(mode="json"), where="the paper's table 3")


def _run(
    lr: float, batch: int, iterations: int, betas: tuple[float, float], eps: float, decay: float, ema: float
) -> RunSettings:
    """An optimiser as the table states it. ema: the decay a step, which becomes a half-life in pictures."""
    halflife = batch * math.log(0.5) / math.log(ema)
    return RunSettings(
        images=batch * iterations, batch=batch, optimizer="adamw", lr=lr, betas=betas, eps=eps,
        weight_decay=decay, warmup=0, ema_halflife=round(halflife),
    )  # fmt: skip


def _text(depth: int) -> TextConfig:
    return TextConfig(
        width=2048, depth=depth, heads=32, vocab_size=VOCABULARY, context_length=256, pad_id=0, eos_id=VOCABULARY - 1
    )


def _upsampler(channels: int, depth: int, multiples: tuple[int, ...], dropout: float) -> DecoderUNetConfig:
    return DecoderUNetConfig(
        channels=channels, blocks=depth, multiples=multiples, attention=(), middle_attention=False, context_tokens=0,
        low_res_channels=3, z_dim=Z_DIM, t_dim=4 * channels, dropout=dropout, resample="residual",
    )  # fmt: skip


def _model(
    kind: str, config: Settings, run: RunSettings, stated: str, steps: int | None, variance: str
) -> PaperModel:
    return PaperModel(kind, config, run, stated, run.images // run.batch, steps, variance)


PAPER: Mapping[str, PaperModel] = {
    "paper-prior-diffusion": _model(
        "prior",
        PriorConfig(
            T=1000, schedule="cosine", target="x_0", dim=Z_DIM, width=2048, depth=24, heads=32, drop=0.1,
            steps=64, candidates=2, caption=_text(0),
        ),
        _run(1.1e-4, 4096, 600_000, (0.9, 0.96), 1e-6, 6e-2, 0.9999),
        "1 B", 64, "Analytic-DPM",
    ),
    "paper-decoder-64": _model(
        "decoder",
        DecoderConfig(
            T=1000, schedule="cosine", target="eps", drop=0.1, caption_drop=0.5, learned_variance=True, steps=250,
            image_size=64, caption=_text(24),
            unet=DecoderUNetConfig(
                channels=512, multiples=(1, 2, 3, 4), blocks=3, attention=(1, 2, 3), head_channels=64, dropout=0.1,
                out_channels=6, z_dim=Z_DIM, t_dim=2048, text_dim=2048, context_tokens=4, resample="residual",
            ),
        ),
        _run(1.2e-4, 2048, 800_000, (0.9, 0.999), 1e-8, 0.0, 0.9999),
        "3.5 B", 250, "learned",
    ),
    "paper-upsampler-256": _model(
        "upsampler",
        UpsamplerConfig(
            T=1000, schedule="cosine", target="eps", image_size=256, low_res_size=64, crop=64, drop=0.0, steps=27,
            unet=_upsampler(320, 3, (1, 2, 3, 4), 0.1),
        ),
        _run(1.2e-4, 1024, 1_000_000, (0.9, 0.999), 1e-8, 0.0, 0.9999),
        "700 M", 27, "DDIM",
    ),
    "paper-upsampler-1024": _model(
        "upsampler",
        UpsamplerConfig(
            T=1000, schedule="linear", target="eps", image_size=1024, low_res_size=256, crop=256, drop=0.0, steps=15,
            unet=_upsampler(192, 2, (1, 1, 2, 2, 4, 4), 0.0),
        ),
        _run(1.0e-4, 512, 1_000_000, (0.9, 0.999), 1e-8, 0.0, 0.9999),
        "300 M", 15, "DDIM",
    ),
}  # fmt: skip


def paper_model(name: str) -> PaperModel:
    """The model of that name. Raises UsageError naming the nearest one."""
    if name not in PAPER:
        close = get_close_matches(name, PAPER, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PAPER)}"
        raise UsageError(f"the paper has no model {name!r}: {hint}")
    return PAPER[name]


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def described(model: PaperModel) -> dict[str, Any]:
    """The settings in plain values."""
    return {"config": model.config.model_dump(mode="json"), "run": model.run.model_dump(mode="json")}
