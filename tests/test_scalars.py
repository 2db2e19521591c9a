"""Numbers of numpy's and tensors without dimensions, wherever a number is taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_rig as rig
from PIL import Image

from dalle_2 import DALLe2, DDIMSampler, NoiseScheduler, Prior, load
from dalle_2.errors import ConfigError, UsageError
from dalle_2.images import to_pil
from dalle_2.inference.generate import generate, generations
from dalle_2.inference.generation import Generation, GenerationSettings
from dalle_2.inference.holes import holed
from dalle_2.inference.image_to_image import image_to_image
from dalle_2.inference.inpaint import inpaint, outpaint
from dalle_2.inference.interpolate import interpolate, interpolate_captions
from dalle_2.inference.plans import EditSettings
from dalle_2.inference.rerank import reranked
from dalle_2.inference.text_diff import text_diff
from dalle_2.inference.upscale import UpscaleSettings, upscaled
from dalle_2.inference.variations import variations
from dalle_2.metadata import save_image
from dalle_2.sampling.inversion import invert
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.options import TokenOptions
from dalle_2.sampling.token_sampler import TokenSampler
from dalle_2.scalars import plain

PROMPT, PROMPTS = "a red circle", ["a red circle", "a blue square"]
# What makes a whole number and a real one of Python's into another's.
Number = Callable[[Any], Any]
NUMBERS: dict[str, tuple[Number, Number]] = {
    "numpy": (np.int64, np.float32),
    "few bits": (np.uint8, np.float64),
    "tensors": (torch.tensor, torch.tensor),
    "arrays": (np.array, np.array),
}
numbers = pytest.mark.parametrize(("whole", "real"), NUMBERS.values(), ids=NUMBERS)
some = pytest.mark.parametrize(("whole", "real"), [NUMBERS["numpy"], NUMBERS["tensors"]], ids=["numpy", "tensors"])


@pytest.fixture(scope="module")
def pipeline(micro_pipeline: Path) -> DALLe2:
    return load(micro_pipeline, device="cpu", dtype="fp32")


def picture(size: int = 32) -> Image.Image:
    return to_pil(torch.rand(3, size, size, generator=rig.generator(4)) * 2 - 1)


def only_plain_values(made: Generation | Any) -> bool:
    """Python's own numbers, which JSON takes, to the innermost."""
    values = json.loads(json.dumps(made.metadata))
    return bool(values == made.metadata) and type(made.seed) is int


@some
def test_a_pipeline_takes_them(whole: Number, real: Number, pipeline: DALLe2) -> None:
    """All arguments that are numbers, by position and by name."""
    made = pipeline.generate(
        PROMPTS, whole(2), real(0.5), seeds=whole(3), guidance=real(2.0), candidates=whole(1), micro_batch=whole(1)
    )
    expected = pipeline.generate(PROMPTS, 2, 0.5, seeds=3, guidance=2.0, candidates=1, micro_batch=1)
    assert torch.equal(made, expected)
    named = {"prior": real(2.0), "decoder": real(1.0)}
    steps = {"decoder": whole(1), "upsampler": whole(2)}
    made = pipeline.generate([PROMPT], guidance=named, stage_steps=steps, seeds=[whole(3)], tile=whole(16))
    plain_names = {"prior": 2.0, "decoder": 1.0}
    expected = pipeline.generate(
        [PROMPT], guidance=plain_names, stage_steps={"decoder": 1, "upsampler": 2}, seeds=[3], tile=16
    )
    assert torch.equal(made, expected)
    z = pipeline.embed(PROMPTS, whole(2), real(0), seeds=whole(1), guidance=real(2), candidates=whole(2))
    assert torch.equal(z, pipeline.embed(PROMPTS, 2, 0.0, seeds=1, guidance=2.0, candidates=2))
    drawn = pipeline.decode(z, whole(2), real(0.5), seeds=whole(1), guidance=real(2))
    assert torch.equal(drawn, pipeline.decode(z, 2, 0.5, seeds=1, guidance=2.0))
    again = pipeline.decode(z, whole(3), seeds=whole(1), start=drawn, strength=real(1.0))
    assert torch.equal(again, pipeline.decode(z, 3, seeds=1, start=drawn, strength=1.0))
    assert torch.equal(pipeline.invert(drawn, z, whole(2)), pipeline.invert(drawn, z, 2))
    large = pipeline.upscale(drawn, z, whole(1), real(0), seeds=whole(1), guidance=real(1), overlap=whole(4))
    assert torch.equal(large, pipeline.upscale(drawn, z, 1, 0.0, seeds=1, guidance=1.0, overlap=4))


@pytest.mark.parametrize("rows", [np.array([3, 4]), torch.tensor([3, 4]), (np.int64(3), 4), range(3, 5)])
def test_rows_of_seeds(rows: Any, pipeline: DALLe2) -> None:
    expected = pipeline.generate(PROMPTS, 1, seeds=[3, 4])
    assert torch.equal(pipeline.generate(PROMPTS, 1, seeds=rows), expected)
    z = torch.ones(2, 16)
    assert torch.equal(pipeline.prior.sample(z, 2, seeds=rows), pipeline.prior.sample(z, 2, seeds=[3, 4]))  # type: ignore[union-attr]
    assert torch.equal(pipeline.decoder.sample(z, 2, seeds=rows), pipeline.decoder.sample(z, 2, seeds=[3, 4]))
    assert torch.equal(PictureNoise(seeds=rows, stage="a")((2, 3)), PictureNoise([3, 4], "a")((2, 3)))


@some
def test_edits_take_them_and_leave_plain_records(whole: Number, real: Number, pipeline: DALLe2, tmp_path: Path) -> None:
    image, few = picture(), EditSettings(steps=whole(2), eta=real(0.25), guidance=real(1.0))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 16, 32, 32))
    made = [
        *generations(pipeline, [PROMPT], whole(3), GenerationSettings(steps=whole(1), guidance={"decoder": real(2)})),
        *variations(pipeline, image, whole(2), seed=whole(3), settings=few),
        *interpolate(pipeline, image, image, whole(2), seed=whole(3), settings=few),
        *interpolate_captions(pipeline, *PROMPTS, whole(2), seed=whole(3), settings=few),
        *inpaint(pipeline, holed(image, mask, 32), PROMPT, whole(1), seed=whole(3), candidates=whole(2), settings=few),
        *image_to_image(pipeline, image, PROMPT, whole(1), strength=real(0.75), seed=whole(3), settings=few),
        *text_diff(pipeline, image, *PROMPTS, whole(2), theta=real(0.5), seed=whole(3), settings=few),
        outpaint(pipeline, image, PROMPT, right=whole(8), seed=whole(3), candidates=whole(1), settings=few),
        *upscaled(pipeline, [picture(16)], whole(3), UpscaleSettings(steps=whole(1), eta=real(0.5), tile=whole(16))),
    ]
    assert all(map(only_plain_values, made))
    save_image(made[0].image, tmp_path / "made.png", made[0].metadata)
    assert len(reranked(pipeline, made[:2], whole(1), of=whole(2))) == 1
    assert len(generate([PROMPT], pipeline, n=whole(2), seed=whole(3), settings=GenerationSettings(steps=1))) == 2


@numbers
def test_processes_samplers_and_tables_take_them(whole: Number, real: Number) -> None:
    z = torch.ones(1, rig.DIM)
    prior, decoder, upsampler = rig.awake(rig.prior()), rig.awake(rig.decoder()), rig.awake(rig.upsampler())
    made = prior.sample(z, whole(2), eta=real(0.5), guidance=real(2), seeds=[whole(1)])
    assert torch.equal(made, prior.sample(z, 2, eta=0.5, guidance=2.0, seeds=[1]))
    assert prior.sample_candidates(z, whole(2), whole(2)).shape == (1, 2, rig.DIM)
    made = decoder.sample(z, whole(2), real(0.5), guidance=real(2), seeds=[whole(1)])
    assert torch.equal(made, decoder.sample(z, 2, 0.5, guidance=2.0, seeds=[1]))
    small = torch.zeros(1, 3, 8, 8)
    made = upsampler.sample(z, small, whole(2), real(0.5), guidance=real(2), seeds=[whole(1)], tile=whole(8))
    assert torch.equal(made, upsampler.sample(z, small, 2, 0.5, guidance=2.0, seeds=[1], tile=8))
    scheduler = NoiseScheduler(whole(rig.T))
    assert scheduler == NoiseScheduler(rig.T)
    assert type(scheduler.T) is int
    sampler = DDIMSampler(scheduler)
    made = sampler.sample(prior, z, (1, rig.DIM), whole(2), eta=real(0.5), guidance=real(2), seeds=[whole(1)])
    assert torch.equal(made, sampler.sample(prior, z, (1, rig.DIM), 2, eta=0.5, guidance=2.0, seeds=[1]))
    denoiser = prior.denoiser(z, guidance=real(2))
    assert len(list(invert(denoiser, z, whole(2), noise_scheduler=scheduler, refine=whole(1)))) == 2
    ar = rig.autoregressive_prior()
    options = TokenOptions(temperature=real(0.5), top_k=whole(3))
    assert json.dumps(options.given) == '{"temperature": 0.5, "top_k": 3}'
    made = ar.sample(z, guidance=real(2), seeds=[whole(1)], drawing=options)
    assert torch.equal(made, ar.sample(z, guidance=2.0, seeds=[1], drawing=TokenOptions(0.5, 3)))
    assert TokenSampler(real(0.5)).temperature == 0.5
    assert Prior(whole(20)).noise_scheduler.T == 20


def test_noise_tables_of_arrays() -> None:
    betas = np.array([0.1, 0.2, 0.3])
    assert NoiseScheduler.from_betas(betas) == NoiseScheduler.from_betas([0.1, 0.2, 0.3])
    assert NoiseScheduler(np.int64(3), betas=betas) == NoiseScheduler.from_betas(torch.tensor(betas))
    alpha_bar = NoiseScheduler(3).alpha_bar
    assert NoiseScheduler.from_alpha_bar(alpha_bar.numpy()) == NoiseScheduler(3)


def test_what_is_no_such_number_stays_one_sentence(pipeline: DALLe2) -> None:
    with pytest.raises(UsageError, match=r"steps must be a whole number from 1 to 1000 for the decoder, got 0"):
        pipeline.decode(torch.ones(1, 16), np.int64(0))
    with pytest.raises(UsageError, match=r"eta must be at least 0 and below 1, got 1\.0"):
        pipeline.decode(torch.ones(1, 16), 1, np.float32(1))
    with pytest.raises(ConfigError, match="'T'"):
        NoiseScheduler(np.int64(0))


def test_other_values_are_left_as_they_are() -> None:
    row, name = torch.ones(2), "ddim"
    for value in (row, name, None, True, [row], {"a": row}):
        same = plain(value)
        assert type(same) is type(value)
    assert plain(row) is row
    assert plain([name, name]) == [name, name]
    assert plain(np.float32(0.5)) == 0.5
    assert type(plain(np.float64(0.5))) is float
