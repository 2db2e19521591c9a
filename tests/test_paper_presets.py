"""The paper's models at their own size, on the meta device, and what training them would take."""

import math

import pytest
import torch
from torch import nn

from dalle_2.cli.main import main
from dalle_2.config import override
from dalle_2.errors import UsageError
from dalle_2.models.autoregressive_prior import AutoregressivePrior
from dalle_2.models.decoder import Decoder
from dalle_2.models.prior import Prior
from dalle_2.presets import on_folder, preset
from dalle_2.training.dry_run import DryRun, dry_run, hardware_rate, parameters, untrained
from dalle_2.training.paper import CLIP_H, PAPER, PAPER_RECIPE
from dalle_2.training.recipe import RunSettings

# Exact numbers from the table's widths, beside what the paper rounds them to.
COUNTS = {
    "paper-prior-ar": 2_115_266_048,  # 1.3 B in the text encoder, 0.8 B behind it
    "paper-prior-diffusion": 1_329_479_680,
    "paper-decoder-64": 3_566_582_278,
    "paper-upsampler-256": 729_456_323,
    "paper-upsampler-1024": 282_009_987,
}
ROUNDED = {"1 B": 1e9, "3.5 B": 3.5e9, "700 M": 7e8, "300 M": 3e8}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return untrained(PAPER_RECIPE, PAPER[name].stage)


@pytest.mark.parametrize("name", PAPER)
def test_every_model_of_the_paper_has_its_number_of_parameters(name: str) -> None:
    assert parameters(on_meta(name)) == COUNTS[name]


@pytest.mark.parametrize("name", ["paper-decoder-64", "paper-upsampler-256"])
def test_decoder_and_first_upsampler_come_within_five_per_cent(name: str) -> None:
    assert COUNTS[name] == pytest.approx(ROUNDED[PAPER[name].parameters], rel=0.05)


def test_what_is_far_from_the_papers_figure_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    prior = on_meta("paper-prior-ar")
    assert isinstance(prior, AutoregressivePrior)
    assert prior.caption is not None
    text = parameters(prior.caption)
    rest = COUNTS["paper-prior-ar"] - text
    assert main(["train", "paper-prior-ar", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"paper-prior-ar: {text / 1e9:.1f} B of these are the text encoder")
    assert f" {rest / 1e9:.1f} B the prior" in said


def test_the_widths_are_those_of_the_table() -> None:
    prior, decoder = on_meta("paper-prior-diffusion"), on_meta("paper-decoder-64")
    assert isinstance(prior, Prior)
    assert isinstance(decoder, Decoder)
    assert (prior.config.width, prior.config.depth, prior.config.heads) == (2048, 24, 32)
    text = decoder.config.caption
    assert text is not None
    assert (text.width, text.depth, text.heads, text.context_length) == (2048, 24, 32, 256)
    unet = decoder.config.unet
    assert (unet.channels, unet.multiples, unet.blocks, unet.context_tokens) == (512, (1, 2, 3, 4), 3, 4)
    assert [64 // 2**level for level in unet.attention] == [32, 16, 8]
    assert (decoder.config.drop, decoder.config.caption_drop) == (0.1, 0.5)
    for name in ("upsampler", "upsampler_2"):
        config = getattr(PAPER_RECIPE, name).config
        assert config.crop == config.image_size // 4
        assert config.unet.attention == ()
        assert config.unet.z_dim == 0  # they see the small picture alone
    prior_ar = on_meta("paper-prior-ar")
    assert isinstance(prior_ar, AutoregressivePrior)
    own = prior_ar.config
    assert (own.width, own.depth, own.heads, own.buckets, prior_ar.components) == (1664, 24, 26, 1024, 319)


# lr, batch, iterations, betas, epsilon, weight decay, decay of the average.
OPTIMISERS = {
    "paper-prior-ar": (1.6e-4, 4096, 1_000_000, (0.9, 0.91), 1e-10, 4e-2, 0.999),
    "paper-prior-diffusion": (1.1e-4, 4096, 600_000, (0.9, 0.96), 1e-6, 6e-2, 0.9999),
    "paper-decoder-64": (1.2e-4, 2048, 800_000, (0.9, 0.999), 1e-8, 0.0, 0.9999),
    "paper-upsampler-256": (1.2e-4, 1024, 1_000_000, (0.9, 0.999), 1e-8, 0.0, 0.9999),
    "paper-upsampler-1024": (1.0e-4, 512, 1_000_000, (0.9, 0.999), 1e-8, 0.0, 0.9999),
}


@pytest.mark.parametrize("name", PAPER)
def test_optimisers_are_those_of_the_table(name: str) -> None:
    run = getattr(PAPER_RECIPE, PAPER[name].stage).run
    iterations, rest = divmod(run.images, run.batch)
    assert (rest, run.optimizer, run.warmup) == (0, "adamw", 0)
    decay = 0.5 ** (run.batch / run.ema_halflife)
    stated = OPTIMISERS[name]
    assert (run.lr, run.batch, iterations, run.betas, run.eps, run.weight_decay) == stated[:-1]
    assert decay == pytest.approx(stated[-1], abs=1e-7)


def test_operations_are_counted_forward_and_twice_back() -> None:
    """The prior is nearly all transformer: two operations a weight and token, three times."""
    run = dry_run(PAPER_RECIPE, "prior")
    tokens = 256 + 4
    by_hand = 3 * 2 * tokens * 24 * 12 * 2048**2
    assert run.flops == pytest.approx(by_hand, rel=0.15)
    assert run.activations > tokens * 2048 * 4 * 24


def test_memory_and_days_follow_from_their_parts() -> None:
    run = DryRun("x", 1000, 800, 6e9, 50, RunSettings(images=10_000, batch=8, ema_halflife=5.0))
    assert run.batch_bytes(3) == 4 * (2 * 1000 + 3 * 800) + 150
    assert run.days(1e12, devices=2, utilisation=0.5) == pytest.approx(10_000 * 6e9 / 1e12 / 86_400)
    assert math.isclose(run.days(1e12), run.days(1e12, 4) * 4)


@pytest.mark.parametrize("stage", ["clip", "prior", "draft", "decoder", "upsampler"])
def test_any_recipe_can_be_counted(stage: str) -> None:
    run = dry_run(preset("shapes-tiny"), stage)
    assert run.flops > run.parameters
    assert run.trained <= run.parameters
    assert (run.trained < run.parameters) == (stage == "decoder")  # its draft is trained before


def test_an_inpainting_decoder_can_be_counted() -> None:
    recipe = override(preset("shapes-micro"), {"decoder_inpaint.run.images": 1000})
    plain, painter = dry_run(recipe, "decoder"), dry_run(recipe, "decoder_inpaint")
    unet = recipe.decoder.config.unet
    assert painter.parameters - plain.parameters == 4 * unet.patch**2 * 9 * unet.channels


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "paper-upsampler-1024", "--dry-run", "--hardware", "h100", "--devices", "64"]) == 0
    out = capsys.readouterr().out
    assert "| paper-upsampler-1024 | 282,009,987 | 300 M |" in out
    assert "days on 64 h100" in out
    assert main(["train", "draft", "shapes-tiny", "--dry-run"]) == 0
    assert "| draft |" in capsys.readouterr().out
    assert main(["train", "paper-decoder-46", "--dry-run"]) == 2
    assert "did you mean 'paper-decoder-64'?" in capsys.readouterr().err
    assert main(["train", "paper-upsampler-256", "--dry-run", "--hardware", "abacus"]) == 2
    assert "no figures for 'abacus': there are v100" in capsys.readouterr().err


def test_the_paper_keeps_its_clip_and_its_steps_on_a_folder() -> None:
    recipe = on_folder(preset("paper-decoder-64"), "pictures")
    assert recipe.clip.encoder == CLIP_H
    assert recipe.decoder.config.steps == 250
    assert recipe.data.source.endswith("pictures")
    with pytest.raises(UsageError, match="no figures for"):
        hardware_rate("")
