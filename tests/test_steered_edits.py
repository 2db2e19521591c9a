"""Edits that look at drafts: particles steered towards what is measured, and embeddings drawn again by the prior."""

import math
from pathlib import Path

import pytest
import torch
from exact_denoisers import COSINE, MU, STD, gaussian, start
from PIL import Image
from torch import Tensor
from training_rig import awake, decoder

import dalle_2
from dalle_2 import DALLe2
from dalle_2.errors import UsageError
from dalle_2.images import from_pil, to_pil
from dalle_2.inference import redrawn as redrawing
from dalle_2.inference.held import held_embedding, held_embeddings
from dalle_2.inference.holes import Holed
from dalle_2.inference.inpaint import inpaint
from dalle_2.inference.latents import at_decoder_size
from dalle_2.inference.looks import drafted, seen
from dalle_2.inference.plans import EditSettings
from dalle_2.inference.redrawn import redrawn
from dalle_2.inference.text_diff import text_diff
from dalle_2.models.prior import Prior
from dalle_2.sampling.particles import drawn_anew, effective, steered

SIZE = 16
RED, BLUE = "a red circle", "a blue square"


@pytest.fixture
def pipeline(micro_pipeline: Path) -> DALLe2:
    """The micro pipeline with a decoder that works on a draft, and without upsampler."""
    plain = dalle_2.load(micro_pipeline, device="cpu")
    draft = {"image_size": SIZE, "z_dim": 16, "width": 16, "depth": 1, "channels": 8}
    unet = {"low_res_channels": 3, "carry": True, "z_dim": 16}
    # As the shipped one; which weights `awake` gives the draft depends on what else there is.
    drawing = awake(decoder(unet, image_size=SIZE, draft=draft, steps=2, sigma_data=None)).eval()
    return DALLe2(plain.prior, drawing, plain.clip_encoder, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    generator = torch.Generator().manual_seed(4)
    return to_pil(torch.rand(3, 4, 4, generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2) * 2 - 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Particles


@pytest.mark.parametrize(("seen", "strength"), [(0.9, 4.0), (-0.5, 1.0)])
def test_steered_particles_are_drawn_from_the_posterior(seen: float, strength: float) -> None:
    def cost(x_0: Tensor) -> Tensor:
        return (x_0[:, 0] - seen) ** 2

    walk = steered(
        gaussian(COSINE), start(20_000, 1), 200, cost, strength=strength, noise_scheduler=COSINE, generator=generator()
    )
    *_, last = walk
    precision = 1 / STD**2 + 2 * strength
    mean = (MU / STD**2 + 2 * strength * seen) / precision
    assert float(last.x_0.mean()) == pytest.approx(mean, abs=0.02)
    assert float(last.x_0.std()) == pytest.approx(1 / math.sqrt(precision), rel=0.06)


def test_where_nothing_is_measured_nothing_is_steered() -> None:
    *_, last = steered(
        gaussian(COSINE), start(20_000, 1), 200, lambda x: torch.zeros(len(x)), strength=1.0,
        noise_scheduler=COSINE, generator=generator(),
    )  # fmt: skip
    assert float(last.x_0.mean()) == pytest.approx(MU, abs=0.02)
    assert float(last.x_0.std()) == pytest.approx(STD, rel=0.05)


def test_rows_are_drawn_as_often_as_their_weights_say() -> None:
    share = torch.tensor([0.5, 0.26, 0.24, 0.0], dtype=torch.float64).repeat(25) / 25
    counts = drawn_anew(share.log(), generator()).bincount(minlength=100)
    assert counts.sum() == 100
    assert bool(((counts - 100 * share).abs() < 1).all())
    assert effective(torch.zeros(7)) == pytest.approx(7)
    assert effective(torch.tensor([0.0, -100.0])) == pytest.approx(1)


@pytest.mark.parametrize(("rows", "strength"), [(1, 1.0), (4, 0.0), (4, math.inf)])
def test_what_can_not_be_steered_is_refused(rows: int, strength: float) -> None:
    with pytest.raises(UsageError, match="at least 2 particles and a positive strength"):
        steered(
            gaussian(COSINE), start(rows, 1), 5, lambda x: x[:, 0], strength=strength,
            noise_scheduler=COSINE, generator=generator(),
        )  # fmt: skip


# Inpainting


def holed_picture(picture: Image.Image) -> Holed:
    hole = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    hole[:, 2:9, 3:11] = True
    return Holed(from_pil(picture), hole)


def test_a_held_embedding_agrees_with_what_is_kept(pipeline: DALLe2) -> None:
    prior = pipeline.prior
    assert isinstance(prior, Prior)
    drawn = prior.sample(pipeline._encode_text([RED]).repeat(100, 1), 25, seeds=range(100, 200), guidance=1.0)
    others = pipeline.decoder.drafts(drawn)
    assert others is not None
    target = Holed(others[0], torch.zeros(1, SIZE, SIZE, dtype=torch.bool))  # what one of them shows, all of it

    def apart(drafts: Tensor) -> Tensor:
        return ((drafts - target.picture) ** 2).mean((1, 2, 3))

    z = held_embedding(pipeline, prior, pipeline._captions([RED]), target, seed=1, particles=64)
    found = pipeline.decoder.drafts(z[None])
    assert found is not None
    assert float(apart(found)) < float(apart(others)[1:].quantile(0.25))
    again = held_embedding(pipeline, prior, pipeline._captions([RED]), target, seed=1, particles=64)
    assert torch.equal(z, again)


def test_particles_go_where_they_fit(pipeline: DALLe2, picture: Image.Image) -> None:
    prior, part = pipeline.prior, holed_picture(picture)
    assert isinstance(prior, Prior)
    kept = ~part.hole.expand(3, -1, -1)

    def reds(weight: float) -> Tensor:
        """How red the particles' pictures are in the hole when they arrive."""
        looked_at: list[Tensor] = []

        def fit(shown: Tensor) -> Tensor:
            looked_at.append(shown)
            return weight * shown[:, 0, 2:9, 3:11].mean((1, 2))

        held_embeddings(pipeline, prior, pipeline._captions([BLUE]), part, fit, seed=2, particles=64)
        assert all(torch.equal(shown[:, kept], part.picture[kept].expand(len(shown), -1)) for shown in looked_at)
        return looked_at[-1][:, 0, 2:9, 3:11].mean((1, 2))

    steered, free = reds(1_000.0), reds(0.0)
    assert float(steered.mean()) > float(free.mean() + free.std())


def test_inpainting_is_steered_where_it_can_be(pipeline: DALLe2, picture: Image.Image) -> None:
    part = holed_picture(picture)
    (made,) = inpaint(pipeline, part, RED, candidates=8)
    assert made.metadata["steered"]
    assert made.metadata["steps"] == {"decoder": 2}  # its embedding knows what is kept: the decoder's own steps do
    kept = ~part.hole.expand(3, -1, -1)
    assert torch.equal(from_pil(made.image)[kept], part.picture[kept])
    (unsteered,) = inpaint(pipeline, part, RED, candidates=8, settings=EditSettings(negative="a star", steps=2))
    assert "steered" not in unsteered.metadata


# Text diffs


def test_a_text_diff_goes_by_the_prior_where_it_can(pipeline: DALLe2, picture: Image.Image) -> None:
    made = list(text_diff(pipeline, picture, RED, BLUE, 3, seed=5))
    assert [one.metadata["by"] for one in made] == ["prior"] * 3
    assert [one.metadata["theta"] for one in made] == [0, 0.5, 1]
    z = pipeline.encode_images([picture])
    assert float((from_pil(made[0].image) - pipeline.decode(z, seeds=5)[0].clamp(-1, 1)).abs().max()) < 1 / 127
    prior = pipeline.prior
    assert isinstance(prior, Prior)
    end = redrawn(pipeline, prior, z, at_decoder_size(pipeline, [picture]), RED, BLUE, seed=5)
    assert float((from_pil(made[2].image) - pipeline.decode(end, seeds=5)[0].clamp(-1, 1)).abs().max()) < 1 / 127
    assert not torch.allclose(z, end, atol=1e-3)
    (paper,) = text_diff(pipeline, picture, RED, BLUE, 1, by="direction", settings=EditSettings(steps=3))
    assert (paper.metadata["by"], paper.metadata["theta"]) == ("direction", 0.5)


def test_of_all_candidates_the_best_is_taken_as_clip_sees_its_draft(pipeline: DALLe2, picture: Image.Image) -> None:
    prior = pipeline.prior
    assert isinstance(prior, Prior)
    z = pipeline.encode_images([picture])
    captions = pipeline._captions([RED, BLUE])
    rows = torch.cat(list(redrawing._candidates(prior, prior.space.to_model(z), captions, None)))
    wished = prior.space.finish(prior.space.from_model(rows))
    assert len(wished) == 6 * 4 * 3
    assert torch.allclose(wished.norm(dim=1), torch.ones(len(wished)), atol=1e-5)
    first = seen(pipeline, drafted(pipeline, wished))
    drafts = drafted(pipeline, first)
    small = drafts[:1].clone()  # so that the candidates differ from it in one half only
    small[..., :5] = 1

    def fits(shown: Tensor) -> Tensor:
        again = seen(pipeline, shown)
        way = torch.cosine_similarity(again - z, captions.z_txt[1:] - captions.z_txt[:1])
        return again @ captions.z_txt[1] + 2 * (way - redrawing._changed(shown, small))

    hole = redrawing._elsewhere(drafts[fits(drafts).argmax()], small[0])
    assert 0 < hole.float().mean() < 1
    told = pipeline._captions([BLUE])
    held = held_embeddings(pipeline, prior, told, Holed(small[0], hole), fits, seed=3, particles=redrawing.PARTICLES)
    both = torch.cat([first, held])
    wanted = both[fits(drafted(pipeline, both)).argmax()]
    best = redrawn(pipeline, prior, z, small, RED, BLUE, seed=3)
    assert torch.allclose(best[0], wanted, atol=1e-5)


def test_a_picture_is_elsewhere_where_neighbours_differ_not_where_a_pixel_does() -> None:
    picture = torch.zeros(3, 16, 16)
    draft = picture.clone()
    draft[:, 4:7, 4:8] = 0.5
    draft[:, 12, 12] = 1.0
    hole = redrawing._elsewhere(draft, picture)
    rows, columns = hole[0].nonzero().T
    assert (int(rows.min()), int(rows.max())) == (4 - redrawing.AROUND, 6 + redrawing.AROUND)
    assert (int(columns.min()), int(columns.max())) == (4 - redrawing.AROUND, 7 + redrawing.AROUND)
    assert not bool(redrawing._elsewhere(picture, picture).any())


def test_pixels_that_became_others_count_and_those_that_stayed_do_not() -> None:
    picture = torch.full((1, 3, 4, 4), -0.5)
    drafts = picture.repeat(3, 1, 1, 1)
    drafts[1, :, :2] = 0.9  # half of them others, however far
    drafts[2, :, 0, 0] += 0.15**0.5  # one of sixteen halfway to another
    assert redrawing._changed(drafts, picture).tolist() == pytest.approx([0, 0.5, 0.5 / 16])


def test_captions_that_change_nothing_leave_the_embedding_among_the_candidates(pipeline: DALLe2) -> None:
    prior = pipeline.prior
    assert isinstance(prior, Prior)
    x_0 = prior.space.to_model(pipeline._encode_text([RED]))
    rows = torch.cat(list(redrawing._candidates(prior, x_0, pipeline._captions([RED, RED]), None)))
    assert float((rows - x_0).abs().amax(1).min()) < 1e-6


def test_a_pipeline_that_can_not_look_at_drafts_goes_by_the_direction(
    micro_pipeline: Path, picture: Image.Image
) -> None:
    plain = dalle_2.load(micro_pipeline, device="cpu")
    (made,) = text_diff(plain, picture, RED, BLUE, 1, settings=EditSettings(steps=3, upsample=False))
    assert made.metadata["by"] == "direction"
    with pytest.raises(UsageError, match="needs a diffusion prior and a decoder with a draft"):
        text_diff(plain, picture, RED, BLUE, 1, by="prior")
