"""Calls as people write them: made to work where the meaning is plain, refused in one sentence elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from training_rig import DIM, awake, decoder, noise, prior

from dalle_2 import CLIPEncoder, DALLe2, DDIMSampler, DecoderUNet, DecoderUNetConfig, PriorTransformer, load
from dalle_2.errors import UsageError
from dalle_2.text.prompts import check_prompts


@pytest.fixture
def pipeline(micro_pipeline: Path) -> DALLe2:
    return load(micro_pipeline, device="cpu")


@pytest.fixture
def encoder(pipeline: DALLe2) -> CLIPEncoder:
    assert isinstance(pipeline.clip_encoder, CLIPEncoder)
    return pipeline.clip_encoder


# Prompts and pictures


def test_a_prompt_may_be_a_list_of_its_words(pipeline: DALLe2, encoder: CLIPEncoder) -> None:
    words = [["orange", "panda", "skiing"], ["red", "sportscar"]]
    whole = ["orange panda skiing", "red sportscar"]
    assert torch.equal(encoder.encode_text(words), encoder.encode_text(whole))
    assert torch.equal(pipeline._encode_text(words), encoder.encode_text(whole))
    assert check_prompts(words) == whole
    drawn = [pipeline.generate(prompts, 2, seeds=[1, 2]) for prompts in (words, whole)]
    assert torch.equal(*drawn)


def test_one_prompt_and_one_picture_need_no_list(pipeline: DALLe2, encoder: CLIPEncoder) -> None:
    picture = Image.new("RGB", (20, 20), "red")
    assert torch.equal(encoder.encode_text("a red circle"), encoder.encode_text(["a red circle"]))
    assert torch.equal(pipeline._encode_text("a red circle"), encoder.encode_text(["a red circle"]))
    assert torch.equal(encoder.encode_images(picture), encoder.encode_images([picture]))
    assert torch.equal(pipeline._encode_images(picture), encoder.encode_images([picture]))


@pytest.mark.parametrize("given", [[3], [None], [["red", 3]]])
def test_what_is_no_prompt_is_refused(given: Any, encoder: CLIPEncoder) -> None:
    with pytest.raises(UsageError, match="a prompt is a string or a list of its words, got"):
        encoder.encode_text(given)


@pytest.mark.parametrize("given", ["cat.png", ["cat.png"], torch.zeros(2, 3, 8, 8), [np.zeros((8, 8, 3))], 3])
def test_what_is_no_picture_is_refused(given: Any, encoder: CLIPEncoder) -> None:
    with pytest.raises(UsageError, match="expected a PIL picture, got .*: dalle_2.images has open_image"):
        encoder.encode_images(given)


# The sampler


def test_eta_may_come_by_position() -> None:
    model = awake(prior()).eval()
    z, sampler = noise(2, DIM), DDIMSampler(model.noise_scheduler)
    named = sampler.sample(model, z, (2, DIM), 4, eta=0.7, seeds=[1, 2])
    assert torch.equal(sampler.sample(model, z, (2, DIM), 4, 0.7, seeds=[1, 2]), named)
    assert not torch.equal(sampler.sample(model, z, (2, DIM), 4, seeds=[1, 2]), named)
    assert torch.equal(model.sample(z, 4, 0.7, seeds=[1, 2]), model.sample(z, 4, eta=0.7, seeds=[1, 2]))


def test_arguments_in_another_order_are_refused() -> None:
    model, z = prior(), noise(2, DIM)
    sampler, shape = DDIMSampler(model.noise_scheduler), (2, DIM)
    for given, name in (
        ((z, model, shape, 4), "model must be a Prior, a Decoder or the like, got a Tensor"),
        ((model, shape, z, 4), "z_cond must be a tensor of a row for each result, got a tuple"),
        ((model, z, 4, shape), "output_shape must be a tuple such as .*, got a int"),
        ((model, z, shape, 4.5), "steps must be a whole number, got a float"),
    ):
        with pytest.raises(UsageError, match=name + ".*sample.model, z_cond, output_shape, steps"):
            sampler.sample(*given)


@pytest.mark.parametrize(
    "network",
    [PriorTransformer(DIM, 1, 2), DecoderUNet(DecoderUNetConfig(channels=8, multiples=(1,), attention=(0,)))],
)
def test_a_bare_network_is_refused_by_name(network: nn.Module) -> None:
    sampler = DDIMSampler(decoder().noise_scheduler)
    with pytest.raises(UsageError, match=f"a {type(network).__name__} is a bare network.*give a Prior or Decoder"):
        sampler.sample(network, noise(2, DIM), (2, DIM), 4)
