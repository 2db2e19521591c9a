"""Every edit on the micro pipeline: what it keeps, what it changes, and what it refuses."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import dalle_2
from dalle_2 import DALLe2, Decoder
from dalle_2.errors import UsageError
from dalle_2.evaluation.typographic import labelled, probe
from dalle_2.images import from_pil, to_pil
from dalle_2.inference.generate import generations
from dalle_2.inference.generation import Generation
from dalle_2.inference.holes import Holed, holed, shrunk
from dalle_2.inference.image_to_image import image_to_image
from dalle_2.inference.inpaint import frames, inpaint, outpaint
from dalle_2.inference.interpolate import interpolate, interpolate_captions
from dalle_2.inference.latents import at_decoder_size
from dalle_2.inference.plans import EditSettings, Plan, draw, in_steps
from dalle_2.inference.reconstruct import doubling, reconstructions, truncated
from dalle_2.inference.rerank import reranked
from dalle_2.inference.text_diff import difference, text_diff
from dalle_2.inference.variations import variations
from dalle_2.models.embedding_space import EmbeddingSpace

QUICK = EditSettings(steps=3, upsample=False)
BACK = EditSettings(steps=3, upsample=False, eta=0.0)  # variations that are the picture itself
RED, BLUE = "a red circle", "a blue square"


@pytest.fixture
def pipeline(micro_pipeline: Path) -> DALLe2:
    return dalle_2.load(micro_pipeline, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    generator = torch.Generator().manual_seed(4)
    return to_pil(torch.rand(3, 4, 4, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2) * 2 - 1)


def pixels(generation: Generation) -> Tensor:
    return from_pil(generation.image)


def nearly_equal(a: Tensor, b: Tensor) -> bool:
    """Two rows of one batch, which a kernel may go through otherwise: what lies beside a rounding's edge may differ."""
    apart = (a - b).abs() * 127.5
    return float(apart.max()) < 1.5 and float((apart < 0.5).float().mean()) >= 0.999


# Drawing plans


def test_plans_are_drawn_in_order_each_as_if_alone(pipeline: DALLe2) -> None:
    z = pipeline.embed([RED] * 6, seeds=3, steps=2)
    plans = [Plan(row, 7 + k) for k, row in enumerate(z)]
    made = list(draw(pipeline, plans, "test", QUICK))
    assert [one.index for one in made] == list(range(6))
    assert [one.seed for one in made] == [7, 8, 9, 10, 11, 12]
    (alone,) = draw(pipeline, plans[4:5], "test", QUICK)
    assert float((pixels(made[4]) - pixels(alone)).abs().max()) <= 1 / 127
    assert made[0].metadata["task"] == "test"
    assert made[0].metadata["steps"] == {"decoder": 3}


def test_finished_pictures_have_the_pipelines_size(pipeline: DALLe2) -> None:
    plan = Plan(pipeline.embed([RED], seeds=3, steps=2)[0], 1)
    (small,), (large,) = draw(pipeline, [plan], "test", QUICK), draw(pipeline, [plan], "test")
    assert small.image.size == (16, 16)
    assert large.image.size == (32, 32)
    assert set(large.metadata["steps"]) == {"decoder", "upsampler-32"}


def test_nothing_to_draw_is_refused(pipeline: DALLe2) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        draw(pipeline, [], "test")
    with pytest.raises(UsageError, match="steps must be a whole number from 1 to 1000"):
        draw(pipeline, [Plan(torch.zeros(16), 0)], "test", EditSettings(steps=1001))


# Inversion and variations


def test_inverting_and_drawing_again_gives_the_picture_back() -> None:
    """By the shipped decoder and its own picture: a network that knows nothing can't be inverted."""
    shipped = dalle_2.load("shapes-tiny", device="cpu")
    z_img = shipped._encode_text([RED])
    small = shipped.decode(z_img, 20, seeds=3, guidance=1.0)
    x_T = shipped.invert(small, z_img, 20)
    again = shipped.decode(z_img, 20, start=x_T, guidance=1.0)
    mean = float((again.clamp(-1, 1) - small.clamp(-1, 1)).square().mean())
    assert 10 * math.log10(4 / mean) > 30  # decibels
    with pytest.raises(UsageError, match="draws pictures of 64 px"):
        shipped.invert(small[:, :, :32, :32], z_img, 20)


def test_variations_differ_by_seed_and_the_more_the_more_fresh_noise(pipeline: DALLe2, picture: Image.Image) -> None:
    calm, wild = (EditSettings(steps=20, eta=eta, upsample=False, guidance=1.0) for eta in (0.0, 0.9))
    still = list(variations(pipeline, [picture], 2, seed=5, settings=calm))
    moved = list(variations(pipeline, [picture], 2, seed=5, settings=wild))
    assert nearly_equal(pixels(still[0]), pixels(still[1]))
    assert not torch.equal(pixels(moved[0]), pixels(moved[1]))
    assert [one.seed for one in moved] == [5, 6]
    again = list(variations(pipeline, [picture], 2, seed=5, settings=wild))
    assert torch.equal(pixels(moved[1]), pixels(again[1]))


def test_a_lone_picture_is_one(pipeline: DALLe2, picture: Image.Image) -> None:
    (alone,), (listed,) = (variations(pipeline, given, 1, settings=BACK) for given in (picture, [picture]))
    assert torch.equal(pixels(alone), pixels(listed))


def test_settings_that_say_nothing_of_eta_leave_variations_fresh(pipeline: DALLe2, picture: Image.Image) -> None:
    first, second = variations(pipeline, [picture], 2, settings=QUICK)
    assert not torch.equal(pixels(first), pixels(second))
    assert first.metadata["eta"] == 0.8


def test_variations_of_several_pictures_come_picture_by_picture(pipeline: DALLe2, picture: Image.Image) -> None:
    made = list(variations(pipeline, [picture, picture.rotate(90)], 2, seed=0, settings=EditSettings(steps=2, eta=0.5)))
    assert [one.metadata["picture"] for one in made] == [0, 0, 1, 1]
    with pytest.raises(UsageError, match="n must be at least 1"):
        variations(pipeline, [picture], 0)


# Interpolation


def test_an_interpolation_ends_in_the_two_pictures(pipeline: DALLe2, picture: Image.Image) -> None:
    other = picture.rotate(180)
    made = list(interpolate(pipeline, picture, other, 3, settings=QUICK))
    alone = [next(variations(pipeline, [one], 1, settings=BACK)) for one in (picture, other)]
    assert [one.metadata["share"] for one in made] == [0, 0.5, 1]
    for end, whole in zip((made[0], made[2]), alone, strict=True):
        assert float((pixels(end) - pixels(whole)).abs().max()) < 0.05


def test_fixed_noise_is_one_noise_for_all(pipeline: DALLe2, picture: Image.Image) -> None:
    made = list(interpolate(pipeline, picture, picture, 3, noise="fixed", seed=9, settings=QUICK))
    assert nearly_equal(pixels(made[0]), pixels(made[2]))
    assert {one.seed for one in made} == {9}
    with pytest.raises(UsageError, match="at least its 2 ends, got n = 1"):
        interpolate(pipeline, picture, picture, 1)


def test_captions_are_interpolated_between_what_the_prior_draws(pipeline: DALLe2) -> None:
    made = list(interpolate_captions(pipeline, RED, BLUE, 3, seed=2, settings=QUICK))
    z = pipeline.embed([BLUE], seeds=[2])
    (end,) = draw(pipeline, [Plan(z[0], 2)], "test", QUICK)
    assert float((pixels(made[2]) - pixels(end)).abs().max()) < 0.05
    assert made[1].metadata["to"] == BLUE


# Text diffs


def test_a_text_diff_turns_towards_the_difference_by_theta(pipeline: DALLe2, picture: Image.Image) -> None:
    direction = difference(pipeline, RED, BLUE)
    assert float(direction.norm()) == pytest.approx(1, abs=1e-5)
    z = pipeline._encode_text([RED, BLUE])
    assert torch.allclose(direction, torch.nn.functional.normalize(z[1:] - z[:1], dim=-1), atol=1e-6)
    made = list(text_diff(pipeline, picture, RED, BLUE, 3, theta=0.5, settings=QUICK))
    assert [one.metadata["theta"] for one in made] == [0, 0.25, 0.5]
    (same,) = variations(pipeline, [picture], 1, settings=BACK)
    assert float((pixels(made[0]) - pixels(same)).abs().max()) < 0.05


@pytest.mark.parametrize("theta", [0.0, -0.1, 1.01, float("nan")])
def test_theta_out_of_range_is_refused(pipeline: DALLe2, picture: Image.Image, theta: float) -> None:
    with pytest.raises(UsageError, match="theta must lie above 0 and at most at 1"):
        text_diff(pipeline, picture, RED, BLUE, theta=theta)


def test_captions_that_say_the_same_are_refused(pipeline: DALLe2, picture: Image.Image) -> None:
    with pytest.raises(UsageError, match="say the same"):
        text_diff(pipeline, picture, RED, RED)


# Holes


def hole_in(size: int, box: tuple[int, int, int, int]) -> Tensor:
    hole = torch.zeros(1, size, size, dtype=torch.bool)
    top, left, bottom, right = box
    hole[:, top:bottom, left:right] = True
    return hole


def test_inpainting_keeps_every_pixel_outside_the_hole(pipeline: DALLe2, picture: Image.Image) -> None:
    whole, hole = from_pil(picture), hole_in(32, (4, 6, 19, 23))
    made = list(inpaint(pipeline, Holed(whole, hole), RED, 2, candidates=3, settings=EditSettings(steps=3)))
    kept = ~hole.expand(3, -1, -1)
    for one in made:
        assert torch.equal(pixels(one)[kept], whole[kept])
        assert not torch.equal(pixels(one)[~kept], whole[~kept])
    assert not torch.equal(pixels(made[0]), pixels(made[1]))


def test_a_mask_is_white_where_to_paint_and_a_small_pixel_is_a_hole_if_any_of_it_is(picture: Image.Image) -> None:
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (5, 5, 6, 6))
    found = holed(picture, mask, 32)
    assert found.hole.nonzero().tolist() == [[0, 5, 5]]
    assert shrunk(found, 16).hole.nonzero().tolist() == [[0, 2, 2]]
    line = Image.new("L", (512, 512), 0)
    line.paste(255, (100, 7, 400, 8))  # a pixel high, of sixteen that become one
    large = holed(picture.resize((512, 512)), line, 32).hole.nonzero()
    assert set(large[:, 1].tolist()) == {0}
    assert set(large[:, 2].tolist()) == set(range(6, 25))


def test_masks_that_make_no_sense_are_refused(pipeline: DALLe2, picture: Image.Image) -> None:
    with pytest.raises(UsageError, match="16 x 32 pixels and the picture 32 x 32"):
        holed(picture, Image.new("L", (16, 32)), 32)
    with pytest.raises(UsageError, match="hides nothing"):
        holed(picture, Image.new("L", picture.size, 0), 32)
    with pytest.raises(UsageError, match="hides the whole picture"):
        holed(picture, Image.new("L", picture.size, 255), 32)
    small = Holed(torch.zeros(3, 16, 16), hole_in(16, (1, 1, 4, 4)))
    with pytest.raises(UsageError, match="got 16 px, this pipeline makes 32"):
        inpaint(pipeline, small, RED)


def test_a_hole_is_of_the_finished_pictures_size(pipeline: DALLe2, picture: Image.Image) -> None:
    part = Holed(from_pil(picture), hole_in(32, (1, 1, 9, 9)))
    with pytest.raises(UsageError, match="leave upsample on"):
        inpaint(pipeline, part, RED, settings=QUICK)
    (made,) = inpaint(pipeline, part, RED, candidates=2)
    assert (made.metadata["prompt"], made.metadata["candidates"]) == (RED, 2)
    assert made.metadata["steps"]["decoder"] == 50  # a decoder that fills no holes needs them to look around


def test_outpainting_keeps_the_picture_and_grows_the_canvas(pipeline: DALLe2, picture: Image.Image) -> None:
    whole = from_pil(picture)
    made = outpaint(pipeline, whole, RED, right=8, bottom=16, settings=EditSettings(steps=2))
    assert made.image.size == (40, 48)
    drawn = from_pil(made.image)
    assert torch.equal(drawn[:, :32, :32], whole)
    for part in (drawn[:, :32, 32:], drawn[:, 32:, :32], drawn[:, 32:, 32:]):  # nothing is left grey
        assert float(part.std()) > 0.05
    assert (made.metadata["task"], made.metadata["prompt"], made.metadata["right"]) == ("outpainting", RED, 8)
    for sides in ({}, {"left": 17}, {"top": -1}):
        with pytest.raises(UsageError, match="each by at most 16 pixels, got left"):
            outpaint(pipeline, whole, RED, **sides)


def test_outpainting_brings_a_picture_to_the_pipelines_size(pipeline: DALLe2, picture: Image.Image) -> None:
    large = picture.resize((70, 64))
    made = outpaint(pipeline, large, RED, left=8, settings=EditSettings(steps=2))
    assert torch.equal(from_pil(made.image)[:, :, 8:], from_pil(large, 32))
    with pytest.raises(UsageError, match=r"got a picture of \(16, 16\) px, this pipeline makes 32"):
        outpaint(pipeline, torch.zeros(3, 16, 16), RED, left=8)


def test_frames_cover_the_canvas_sides_before_corners() -> None:
    places = frames((48, 40), (16, 0), 32)
    covered = torch.zeros(48, 40, dtype=torch.bool)
    for y, x in places:
        covered[y : y + 32, x : x + 32] = True
    assert bool(covered.all())
    assert places[0] == (16, 0)
    assert places.index((0, 0)) < places.index((0, 8))


# Drawing over, directions, ranking, probing


def test_drawing_over_keeps_the_more_the_weaker(picture: Image.Image) -> None:
    shipped = dalle_2.load("shapes-tiny", device="cpu")
    small = at_decoder_size(shipped, [picture])[0]
    settings = EditSettings(steps=20, upsample=False, guidance=1.0)
    apart = []
    for strength in (0.05, 0.4, 1.0):
        (made,) = image_to_image(shipped, picture, RED, strength=strength, seed=1, settings=settings)
        apart.append(float((pixels(made) - small).abs().mean()))
    assert apart[0] < apart[1] < apart[2]


def test_on_a_draft_the_embedding_is_drawn_over_too() -> None:
    """Such a decoder hardly sees its start: a weak strength leaves the picture's embedding, the full one nothing."""
    shipped = dalle_2.load("shapes-tiny", device="cpu")
    z = shipped.embed(["a small green star on a black background"], seeds=3)
    settled = {"seeds": 5, "start": z, "steps": 25, "candidates": 1}
    near, far, anew = (
        float(F.cosine_similarity(shipped.embed([RED], **settled, strength=strength), z)) for strength in (0.05, 0.9, 1)
    )
    assert near > 0.9 > far > anew - 0.1
    with pytest.raises(UsageError, match="strength 0.01 leaves none of 25 steps"):
        shipped.embed([RED], **settled, strength=0.01)
    with pytest.raises(UsageError, match="autoregressive prior draws nothing over"):
        shipped.embed([RED], start=z, prior="ar")


@pytest.mark.parametrize(
    ("strength", "message"),
    [(0.0, "above 0 and at most at 1"), (1.1, "above 0 and at most at 1"), (0.1, "leaves none of 3 steps")],
)
def test_a_strength_that_leaves_nothing_to_do_is_refused(
    pipeline: DALLe2, picture: Image.Image, strength: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        list(image_to_image(pipeline, picture, RED, strength=strength, settings=QUICK))


def test_directions_add_up_to_the_embedding() -> None:
    basis = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    rows = tuple(map(tuple, basis.tolist()))
    space = EmbeddingSpace(dim=6, normalised=True, basis=rows, mean=(0.1, 0.2, 0.0, 0.3), std=(0.5,) * 4)
    z = space.finish(torch.randn(3, 4, dtype=torch.float64) @ basis)
    assert torch.allclose(truncated(z, 4, space), z, atol=1e-9)
    errors = [float((truncated(z, count, space) - z).norm()) for count in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    seen = space.to_model(truncated(z, 2, space))
    whole = space.to_model(z)
    along = torch.nn.functional.cosine_similarity(
        seen[:, :2] + torch.tensor([0.2, 0.4]), whole[:, :2] + torch.tensor([0.2, 0.4])
    )
    assert bool((along > 0.999).all())


def test_by_default_directions_double_up_to_all_of_them() -> None:
    assert doubling(96) == [2, 4, 8, 16, 32, 64, 96]
    assert doubling(8) == [2, 4, 8]
    assert doubling(1) == [1]


def test_a_short_noise_table_has_no_more_steps_than_it_has() -> None:
    assert in_steps(None, Decoder(T=20)).steps == 20
    assert in_steps(EditSettings(steps=3), Decoder(T=20)).steps == 3
    assert in_steps(None, Decoder()).steps == 50


def test_a_decoder_that_knows_no_directions_says_so(pipeline: DALLe2, picture: Image.Image) -> None:
    said = f"sees embeddings of {pipeline.decoder.space.dim} numbers as they are, and .*: use such a pipeline, like"
    with pytest.raises(UsageError, match=said):
        reconstructions(pipeline, picture, [2])


def test_the_best_of_several_are_those_closest_to_their_prompt(pipeline: DALLe2) -> None:
    made = list(generations(pipeline, [RED, RED, RED, BLUE, BLUE, BLUE], 0))
    best = reranked(pipeline, iter(made), 2, of=3)
    assert [one.prompt for one in best] == [RED, RED, BLUE, BLUE]
    twice = reranked(pipeline, list(generations(pipeline, [RED] * 4, 0)), 1, of=2)
    assert len(twice) == 2  # a prompt that is asked for twice is answered twice
    z_img = pipeline._encode_images([one.image for one in made])
    z_txt = pipeline._encode_text([one.prompt for one in made])
    cosines = torch.nn.functional.cosine_similarity(z_img, z_txt).tolist()
    assert best[0].metadata["clip"] == pytest.approx(max(cosines[:3]), abs=1e-4)
    assert best[3].metadata["clip"] == pytest.approx(sorted(cosines[3:])[1], abs=1e-4)
    with pytest.raises(UsageError, match="1 to 3 can be kept, got 4"):
        reranked(pipeline, made, 4, of=3)
    with pytest.raises(UsageError, match="got 1 of 6"):
        reranked(pipeline, made, 1, of=4)


def test_a_probe_asks_before_and_after_the_word_is_written(pipeline: DALLe2, picture: Image.Image) -> None:
    found = probe(pipeline, picture, "star", [RED, BLUE])
    for row in (found.before, found.after):
        assert sum(row) == pytest.approx(1, abs=1e-5)
    assert found.before != found.after
    assert found.fooled == ((found.before[0] > found.before[1]) != (found.after[0] > found.after[1]))
    changed = (from_pil(labelled(picture, "star")) - from_pil(picture)).abs().amax(0) > 0
    rows, columns = changed.nonzero(as_tuple=True)
    assert int(rows.min()) > 4
    assert int(columns.max()) < 28
    with pytest.raises(UsageError, match="at least 2, got 1"):
        probe(pipeline, picture, "star", [RED])


# What is no picture. Tests check types at every call, users don't: so this runs as a user's script does.

ODD = """
import sys
import torch
from PIL import Image
import dalle_2
from dalle_2.errors import UsageError
from dalle_2.evaluation.typographic import probe
from dalle_2.inference.holes import holed
from dalle_2.inference.image_to_image import image_to_image
from dalle_2.inference.inpaint import inpaint, outpaint
from dalle_2.inference.interpolate import interpolate
from dalle_2.inference.rerank import reranked
from dalle_2.inference.text_diff import text_diff
from dalle_2.inference.variations import variations

pipeline, picture = dalle_2.load(sys.argv[1], device="cpu"), Image.new("RGB", (32, 32))
tensor = torch.zeros(3, 32, 32)
for call in (
    lambda: variations(pipeline, tensor),
    lambda: variations(pipeline, ["picture.png"]),
    lambda: interpolate(pipeline, picture, "other.png"),
    lambda: text_diff(pipeline, tensor, "a red circle", "a blue square"),
    lambda: image_to_image(pipeline, "picture.png", "a red circle"),
    lambda: outpaint(pipeline, "picture.png", "a red circle", left=8),
    lambda: probe(pipeline, tensor, "star", ["a star", "a circle"]),
    lambda: holed(tensor, picture, 32),
    lambda: inpaint(pipeline, picture, "a red circle"),
    lambda: inpaint(pipeline, tensor, "a red circle"),
    lambda: reranked(pipeline, [picture, picture]),
):
    try:
        print("no error:", list(call()))
    except UsageError as error:
        print(error)
"""


def test_what_is_no_picture_is_refused_in_a_sentence(micro_pipeline: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ODD, str(micro_pipeline)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *pictures, alone, laid, plain = done.stdout.splitlines()
    odd = ["Tensor", "str", "str", "Tensor", "str", "str", "Tensor", "Tensor"]
    assert [line.split(": ")[0] for line in pictures] == [f"expected a PIL picture, got {kind}" for kind in odd]
    assert alone.startswith("expected a picture with a hole, got Image: make one as holed(picture, mask, pipeline.")
    assert laid.startswith("expected a picture with a hole, got Tensor")
    assert "got Image, which knows no prompt: closeness(" in plain
