"""Kandinsky's priors in the layout of diffusers against diffusers itself, on the same random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from PIL import Image
from torch import Tensor

import dalle_2
from dalle_2 import DALLe2
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.models.prior import Prior, PriorConfig
from dalle_2.pipelines import karlo_settings
from dalle_2.sampling.noise import PictureNoise

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPTS, SEEDS = ["a red fox", "green"], [3, 8]
PIPELINES = ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline")


def build(folder: Path, kind: str) -> Any:
    """Writes a tiny one, and gives diffusers' pipeline of it."""
    import diffusers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    prior = diffusers.PriorTransformer(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, embedding_dim=karlo_rig.DIM,
        num_embeddings=karlo_rig.CONTEXT, additional_embeddings=4,
    )  # fmt: skip
    text = karlo_rig.text_encoder()
    for model in (prior, text):
        karlo_rig.randomise(model)
    prior.clip_std.data = 0.5 + torch.rand(1, karlo_rig.DIM)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pipeline = getattr(diffusers, kind)(
        prior=prior, text_encoder=text, tokenizer=karlo_rig.tokenizer(folder), image_encoder=karlo_rig.image_encoder(),
        image_processor=processor,
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=PIPELINES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, DALLe2]:
    folder = tmp_path_factory.mktemp("kandinsky")
    theirs = build(folder, request.param)
    return folder, theirs, dalle_2.load(folder, device="cpu", dtype="float32")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    build(tmp_path / "k", PIPELINES[0])
    return tmp_path / "k"


@torch.no_grad()
def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def test_the_network_gives_what_its_peer_gives(both: tuple[Path, Any, DALLe2]) -> None:
    _, theirs, ours = both
    ids = theirs.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    text, t, x = theirs.text_encoder(ids.input_ids), torch.tensor([5, 999]), torch.randn(2, karlo_rig.DIM)
    wanted = theirs.prior(
        x, t, proj_embedding=text.text_embeds, encoder_hidden_states=text.last_hidden_state,
        attention_mask=ids.attention_mask.bool(),
    ).predicted_image_embedding  # fmt: skip
    prior = ours.prior
    assert isinstance(prior, Prior)
    assert (prior.settings.clip, prior.settings.guidance, prior.settings.steps) == (10.0, 4.0, 25)
    assert error(prior(text.text_embeds, x, prior.time(t), tokens=ids.input_ids), wanted) < 1e-5


@pytest.mark.parametrize("negative", [None, "a bad drawing"])
def test_a_caption_becomes_the_same_embedding(
    both: tuple[Path, Any, DALLe2], negative: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, theirs, ours = both
    captions, seeds = PROMPTS, SEEDS
    if negative is not None:  # diffusers draws one for the negative prompt in the same batch, guided away from itself
        captions, seeds = [*PROMPTS[:1], negative], SEEDS
    _same_noise(monkeypatch, theirs, ours, seeds)
    drawn = theirs(captions[:1] if negative else captions, negative_prompt=negative).to_tuple()
    wanted = torch.cat(drawn) if negative else drawn[0]
    assert error(ours.embed(captions, seeds=seeds, negative=negative), wanted) < 1e-4


def test_the_decoder_is_missing_until_one_is_set(both: tuple[Path, Any, DALLe2]) -> None:
    ours = both[2]
    said = "has no decoder and draws embeddings of captions alone, .* makes no pictures: use one that has, like karlo"
    with pytest.raises(UsageError, match=said):
        ours.generate(PROMPTS)
    noise = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    wanted = both[1].image_encoder(both[1].image_processor(picture, return_tensors="pt").pixel_values).image_embeds
    assert error(ours.clip_encoder.encode_images([picture]), wanted) < 1e-4


def test_karlos_decoder_fits_it(both: tuple[Path, Any, DALLe2], tmp_path: Path) -> None:
    karlo_rig.build(tmp_path / "karlo")
    karlo = dalle_2.load(tmp_path / "karlo", device="cpu", dtype="float32")
    karlo.prior = both[2].prior
    (made,) = karlo.generate(PROMPTS[:1], 2, seeds=1)
    assert made.shape == (3, karlo_rig.LARGE, karlo_rig.LARGE)


def test_a_part_that_is_missing_or_of_another_class_is_named(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(CheckpointError, match="scheduler is a 'DDIMScheduler', and only a UnCLIPScheduler is known"):
        dalle_2.load(copied)
    shutil.rmtree(copied / "text_encoder")
    with pytest.raises(CheckpointError, match="lacks text_encoder"):
        dalle_2.load(copied)


@pytest.mark.parametrize(("dim", "text_width"), [(768, 768), (1280, 1280)])
def test_the_published_sizes_are_those_of_diffusers(dim: int, text_width: int) -> None:
    from diffusers import PriorTransformer

    layout = {"embedding_dim": dim, "num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20}
    text = TextConfig(width=text_width, heads=text_width // 64, depth=0, vocab_size=2, context_length=77)
    scheduler = {"prediction_type": "sample", "clip_sample_range": 10.0}
    values = karlo_settings.prior(layout, scheduler, text, [0], [0.0] * dim, [1.0] * dim)
    with torch.device("meta"):
        ours, theirs = Prior.from_config(PriorConfig(**values)), PriorTransformer(**layout)
    counted = sum(x.numel() for part in (ours.network, ours.time) for x in part.parameters())
    assert counted + 2 * dim == sum(x.numel() for x in theirs.parameters())  # its mean and spread are settings here


def _same_noise(monkeypatch: pytest.MonkeyPatch, theirs: Any, ours: DALLe2, seeds: list[int]) -> None:
    """diffusers draws the noise that ours draws, and reckons with the noise table in float64."""
    from diffusers.pipelines.kandinsky import pipeline_kandinsky_prior
    from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2_prior
    from diffusers.schedulers import scheduling_unclip

    noise = PictureNoise(seeds, "prior")
    for module in (pipeline_kandinsky_prior, pipeline_kandinsky2_2_prior, scheduling_unclip):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **given: noise(tuple(shape)))
    prior = ours.prior
    assert prior is not None
    table, scheduler = prior.noise_scheduler, theirs.scheduler  # type: ignore[union-attr]
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = table.betas, table.alphas, table.alpha_bar
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
