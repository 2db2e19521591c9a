"""The inpainting decoder: what it takes over, what it is shown, and that training leaves it in the pipeline."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from training_rig import DIM, awake, decoder, drafting, generator, noise

import dalle_2
from dalle_2.errors import ConfigError, UsageError
from dalle_2.inference.variations import variations
from dalle_2.models.decoder import Known
from dalle_2.models.masks import WHOLE, known_channels, random_holes
from dalle_2.presets import resolve
from dalle_2.training.train import Training
from dalle_2.training.train_inpaint import painter_of

SMALL = [
    "embeddings=40", "directions=16", "clip.run.images=64", "clip.captions=40", "clip.vocabulary=300",
    "clip.config.vision.width=16", "clip.config.vision.heads=2", "clip.config.text.width=16",
    "clip.config.text.depth=1", "clip.config.text.heads=2", "clip.config.embed_dim=24", "clip.config.phrases=0",
    "clip.config.thumbnail=0", "prior.run.images=64", "prior.run.batch=32", "prior.config.width=16",
    "prior.config.heads=2", "prior.config.refine=1", "draft.run.images=64", "draft.run.batch=32",
    "draft.config.width=16", "draft.config.channels=8", "decoder.run.images=32", "decoder.run.batch=16",
    "decoder.config.unet.channels=8", "decoder.config.unet.head_channels=8", "upsampler=none",
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("build", [decoder, drafting])
def test_at_first_it_draws_what_the_decoder_draws_whatever_is_kept(build: object) -> None:
    plain = awake(build()).eval()  # type: ignore[operator]
    painter = painter_of(plain, drop=0.3).eval()
    assert painter.fills_holes
    assert painter.config.drop == 0.3
    x, z, t = noise(2, 3, 8, 8), noise(2, DIM, seed=1), torch.tensor([5, 30])
    known = Known(noise(2, 3, 8, 8, seed=4), torch.rand(2, 1, 8, 8) > 0.5)
    answer = plain(x, z, plain.time(t))
    assert torch.allclose(painter(x, z, painter.time(t)), answer, atol=1e-6)
    assert torch.allclose(painter(x, z, painter.time(t), known=known), answer, atol=1e-6)
    with pytest.raises(UsageError, match="this fills holes"):
        painter_of(painter)


@torch.no_grad()
def test_what_is_kept_reaches_the_network_and_the_result() -> None:
    painter = awake(painter_of(decoder())).eval()
    painter.network.conv_in.weight.normal_(std=0.1, generator=generator())
    z, t, x = noise(1, DIM), torch.tensor([20]), noise(1, 3, 8, 8, seed=2)
    hole = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    hole[..., :4] = True
    known = Known(noise(1, 3, 8, 8, seed=5).clamp(-1, 1), hole)
    other = Known(known.picture.flip(2), hole)
    assert not torch.allclose(painter(x, z, painter.time(t), known=known), painter(x, z, painter.time(t), known=other))
    drawn = painter.sample(z, 4, known=known, seeds=[1])
    assert torch.equal(drawn[..., 4:], known.picture[..., 4:])


def test_holes_are_parts_of_pictures_and_sometimes_all_of_them() -> None:
    holes = random_holes(4000, 16, generator())
    share = holes.float().mean((1, 2, 3))
    assert float((share == 1).float().mean()) == pytest.approx(WHOLE, abs=0.05)
    assert 0.3 < float(share.mean()) < 0.7
    assert float(share.min()) > 0
    assert torch.equal(holes, random_holes(4000, 16, generator()))
    picture = noise(1, 3, 16, 16)
    channels = known_channels(picture, holes[:1])
    assert torch.equal(channels[:, 3:], (~holes[:1]).float())
    assert not channels[:, :3][holes[:1].expand(-1, 3, -1, -1)].any()


def test_a_recipe_with_captions_and_inpainting_leaves_a_pipeline_that_has_both(tmp_path: Path) -> None:
    changes = [
        *SMALL, "prior.caption=clip", "prior.config.refine=0", "decoder.caption=own", "decoder.text.width=16",
        "decoder.text.depth=1", "decoder.text.heads=2", "decoder.config.learned_variance=true",
        "decoder.config.unet.out_channels=6", "decoder_inpaint.run.images=32", "decoder_inpaint.run.batch=16",
    ]  # fmt: skip
    recipe = resolve(["shapes-micro"], changes=changes)
    folder = Training(recipe, tmp_path / "out", say=lambda line: None).train()
    assert folder is not None
    pipeline = dalle_2.load(folder, device="cpu")
    assert pipeline.prior is not None
    assert pipeline.prior.caption is not None
    assert pipeline.decoder.caption is not None
    clip = pipeline.clip_encoder.model.text  # type: ignore[attr-defined]
    own = pipeline.prior.caption.embedding.weight
    assert torch.allclose(own, clip.embedding.weight, atol=1e-3)  # half precision in both files
    assert pipeline.painter is not pipeline.decoder
    assert pipeline.painter.fills_holes
    red, green = (pipeline.generate([words], seeds=1, candidates=1) for words in ("a red circle", "a green star"))
    assert not torch.equal(red, green)
    guided = pipeline.generate(["a red circle"], seeds=1, candidates=1, guidance=2.0, text_guidance=3.0, steps=3)
    plain = pipeline.generate(["a red circle"], seeds=1, candidates=1, guidance=2.0, steps=3)
    assert not torch.equal(guided, plain)
    avoided = pipeline.generate(["a red circle"], seeds=1, candidates=1, negative="a green star", guidance=2.0, steps=3)
    assert not torch.equal(avoided, plain)
    said: list[str] = []
    Training(recipe, tmp_path / "out", say=said.append).train()
    assert all("done before" in line for line in said)


def test_a_decoder_may_be_trained_on_captions_to_do_without_a_prior(tmp_path: Path) -> None:
    recipe = resolve(["shapes-micro"], changes=[*SMALL, "draft.of=text", "decoder.of=text"])
    folder = Training(recipe, tmp_path / "out", say=lambda line: None).train()
    assert folder is not None
    pipeline = dalle_2.load(folder, device="cpu")
    assert pipeline.decoder.space.basis is None  # captions are seen in all directions
    assert pipeline.prior is not None
    assert pipeline.prior.space.basis is not None
    z = pipeline._encode_text(["a red circle"])
    assert torch.equal(pipeline.embed(["a red circle"]), z)
    assert "prior" not in pipeline.settings()  # which it was trained to do without
    assert torch.allclose(pipeline.generate(["a red circle"], seeds=1), pipeline.decode(z, seeds=1), atol=1e-5)
    with pytest.raises(UsageError, match="trained on captions' embeddings: leave the prior out"):
        pipeline.generate(["a red circle"], prior="diffusion")
    with pytest.raises(UsageError, match="can't be shown pictures"):
        next(variations(pipeline, [Image.new("RGB", (64, 64))]))
    with pytest.raises(ConfigError, match="draft.of is text and decoder.of image"):
        resolve(["shapes-micro"], changes=["draft.of=text"])


def test_a_painter_of_an_older_decoder_is_not_passed_off_as_the_new_ones(tmp_path: Path) -> None:
    changes = [*SMALL, "decoder_inpaint.run.images=32", "decoder_inpaint.run.batch=16"]
    out = tmp_path / "out"
    Training(resolve(["shapes-micro"], changes=changes), out, say=lambda line: None).train()
    longer = resolve(["shapes-micro"], changes=[*changes, "decoder.run.images=64"])
    with pytest.raises(UsageError, match="begun with another decoder: delete that folder"):
        Training(longer, out, say=lambda line: None).train()


def test_clips_own_text_transformer_stays_as_it_is_in_every_stage(tmp_path: Path) -> None:
    changes = [*SMALL, "decoder.caption=clip", "decoder_inpaint.run.images=48", "decoder_inpaint.run.batch=16"]
    folder = Training(resolve(["shapes-micro"], changes=changes), tmp_path / "out", say=lambda line: None).train()
    assert folder is not None
    pipeline = dalle_2.load(folder, device="cpu")
    clip = pipeline.clip_encoder.model.text.state_dict()  # type: ignore[attr-defined]
    for decoder_ in (pipeline.decoder, pipeline.painter):
        assert decoder_.caption is not None
        own = decoder_.caption.state_dict()
        assert all(torch.allclose(own[name], clip[name], atol=2e-3) for name in own)


def test_directions_that_change_are_another_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Training(resolve(["shapes-micro"], changes=SMALL), out, say=lambda line: None).train()
    other = resolve(["shapes-micro"], changes=[*SMALL, "directions=8"])
    with pytest.raises(UsageError, match="begun with another directions"):
        Training(other, out, say=lambda line: None).train()
