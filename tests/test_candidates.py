"""Several embeddings for one prompt: how they are drawn, which is kept, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from training_rig import DIM, awake, noise, prior

import dalle_2
from dalle_2 import DALLe2, Decoder
from dalle_2.errors import UsageError
from dalle_2.images import to_pils
from dalle_2.inference.generate import generations
from dalle_2.inference.generation import GenerationSettings
from dalle_2.models.candidates import best, scores
from dalle_2.models.decoder import DecoderConfig

PROMPTS = ["a red circle", "a blue square", "a red square above a blue circle"]


@pytest.fixture
def pipeline(micro_pipeline: Path) -> DALLe2:
    return dalle_2.load(micro_pipeline, device="cpu")


def drafting_decoder() -> Decoder:
    unet = {"channels": 16, "multiples": (1,), "blocks": 1, "attention": (), "middle_attention": False}
    unet |= {"patch": 8, "z_dim": 16, "t_dim": 16, "low_res_channels": 3}
    draft = {"image_size": 16, "z_dim": 16, "width": 16, "depth": 1, "channels": 8}
    return awake(Decoder.from_config(DecoderConfig.model_validate({"image_size": 16, "unet": unet, "draft": draft})))


def test_without_pictures_the_score_is_the_papers() -> None:
    z_txt = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    z = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [-1.0, 0.0]]])
    torch.testing.assert_close(scores(z, z_txt), torch.tensor([[1.0, 0.0], [0.5**0.5, 0.0]]))


def test_with_pictures_they_must_fit_the_caption_and_come_back_as_themselves() -> None:
    z_txt, z = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    seen = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    torch.testing.assert_close(scores(z, z_txt, seen), torch.tensor([[2.0, 0.0, 1.0]]))


def test_the_best_of_each_row_is_kept() -> None:
    z = noise(2, 3, 4)
    assert torch.equal(best(z, torch.tensor([[0.1, 0.3, 0.2], [0.5, -1.0, 0.4]])), torch.stack([z[0, 1], z[1, 0]]))


def test_candidates_begin_with_the_sample_and_differ() -> None:
    model, z_txt = awake(prior(steps=3)).eval(), noise(2, DIM)
    drawn = model.sample_candidates(z_txt, 3, seeds=[5, 6])
    assert drawn.shape == (2, 3, DIM)
    torch.testing.assert_close(drawn[:, 0], model.sample(z_txt, seeds=[5, 6]))
    assert not torch.allclose(drawn[:, 0], drawn[:, 1])
    torch.testing.assert_close(drawn[1:], model.sample_candidates(z_txt[1:], 3, seeds=[6]))  # whoever stands beside it


@pytest.mark.parametrize("has_draft", [False, True])
def test_a_pipeline_keeps_the_candidate_with_the_highest_score(pipeline: DALLe2, has_draft: bool) -> None:
    if has_draft:
        pipeline.decoder = drafting_decoder()
    z_txt = pipeline._encode_text(PROMPTS)
    assert pipeline.prior is not None
    drawn = pipeline.prior.sample_candidates(z_txt, 6, seeds=[3, 4, 5])
    wanted, given = F.cosine_similarity(drawn, z_txt[:, None], dim=-1), drawn
    if has_draft:
        flat = drawn.flatten(0, 1)
        pictures = pipeline.decoder.draft(pipeline.decoder.space.to_model(flat))
        seen = pipeline._encode_images(to_pils(pictures.detach())).unflatten(0, (3, 6))
        wanted = F.cosine_similarity(seen, z_txt[:, None], dim=-1) + F.cosine_similarity(seen, drawn, dim=-1)
        given = seen  # what goes on is the embedding of the picture
    chosen = wanted.argmax(dim=1)
    kept = pipeline.embed(PROMPTS, seeds=3, candidates=6)
    torch.testing.assert_close(kept, given[torch.arange(3), chosen])
    assert chosen.any()  # or the test could not fail


def test_candidates_are_a_setting_of_the_prior_and_of_a_call(pipeline: DALLe2) -> None:
    prior = pipeline.prior
    assert prior is not None
    assert pipeline.settings()["prior"].candidates == 2  # as the paper
    prior.config = prior.settings = prior.config.model_copy(update={"candidates": 4})
    plan = pipeline.settings()
    assert (plan["prior"].candidates, plan["decoder"].candidates) == (4, 1)
    assert torch.equal(pipeline.embed(PROMPTS, seeds=3), pipeline.embed(PROMPTS, seeds=3, candidates=4))
    assert pipeline.settings(candidates=3)["prior"].candidates == 3
    made = next(generations(pipeline, PROMPTS[:1], 3, GenerationSettings(candidates=2)))
    assert made.metadata["candidates"] == 2
    made = next(generations(pipeline, PROMPTS[:1], 3, GenerationSettings(use_prior=False)))
    assert "candidates" not in made.metadata


@pytest.mark.parametrize("count", [0, -1, True, 1_000_000])
def test_a_count_that_makes_no_sense_is_refused(pipeline: DALLe2, count: int) -> None:
    with pytest.raises(UsageError, match=f"candidates must be a whole number from 1 to 1000, got {count}"):
        pipeline.generate(PROMPTS[:1], candidates=count)


def test_what_is_for_a_prior_is_refused_where_it_is_left_out(pipeline: DALLe2) -> None:
    for given in ({"candidates": 2}, {"prior": "diffusion"}):
        with pytest.raises(UsageError, match="this one leaves it out"):
            pipeline.generate(PROMPTS[:1], use_prior=False, **given)
