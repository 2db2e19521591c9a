"""Captions read word by word: in the prior, in the decoder, and what guidance makes of them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from training_rig import DIM, Pairs, T, awake, decoder, generator, noise, prior

from dalle_2.config import parse
from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.captions import Caption, caption_conditions
from dalle_2.models.decoder import Decoder, DecoderConfig
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer
from dalle_2.models.prior import Prior
from dalle_2.sampling.guidance import guide

TEXT = {"width": 12, "depth": 1, "heads": 2, "vocab_size": 20, "context_length": 6}
WIDTH = TEXT["width"]


def reading_prior(**changes: Any) -> Prior:
    return awake(prior(caption=TEXT, **changes)).eval()


def reading_decoder(**changes: Any) -> Decoder:
    unet = {"text_dim": WIDTH, **changes.pop("unet", {})}
    return awake(decoder(unet, caption=TEXT, clip=None, **changes)).eval()


def tokens(rows: int, words: int = 3, seed: int = 0) -> Tensor:
    """`words` random words between start and end, then padding."""
    row = torch.randint(3, 20, (rows, words), generator=generator(seed))
    ends = torch.tensor([[1]]).expand(rows, 1), torch.tensor([[2]]).expand(rows, 1)
    return torch.cat([ends[0], row, ends[1], torch.zeros(rows, 4 - words, dtype=torch.long)], dim=1)


# The text transformer


def test_padding_is_trimmed_and_marked() -> None:
    text = awake(TextTransformer(parse(TextConfig, TEXT)))
    rows = torch.cat([tokens(1, 1), tokens(1, 3)])
    read = text.read(rows)
    assert read.states.shape == (2, 5, WIDTH)
    assert read.valid.tolist() == [[True, True, True, False, False], [True] * 5]
    alone = text.read(rows[:1])
    assert torch.allclose(alone.states, read.states[:1, :3], atol=1e-6)
    assert not read.without(torch.tensor([True, False])).valid[0].any()


# The prior


@torch.no_grad()
def test_the_sequence_is_text_then_embedding_time_noised_query() -> None:
    model = reading_prior()
    seen: list[Tensor] = []
    z, x, t = noise(2, DIM, seed=1), noise(2, DIM, seed=2), torch.tensor([3, 4])
    ids = tokens(2)
    block = model.network.transformer.blocks[0]
    block.last = spied(block.last, seen)  # type: ignore[assignment]
    model(z, x, model.time(t), tokens=ids)
    network, (sequence,) = model.network, seen
    words = model.caption.read(ids).states
    assert sequence.shape == (2, 5 + 4, network.width)
    assert torch.allclose(sequence[:, :5], network.embed_states(words))
    text = model.text_space.to_model(z)
    parts = [network.embed_text(text), network.embed_time(model.time(t)), network.embed_noised(x)]
    for place, part in enumerate(parts):
        assert torch.allclose(sequence[:, 5 + place], part + network.positions[place], atol=1e-6)
    assert torch.allclose(sequence[:, -1], (network.query + network.positions[3]).expand(2, -1))


def spied(call: Any, seen: list[Tensor]) -> Any:
    def spy(x: Tensor, *others: Any) -> Tensor:
        seen.append(x)
        return call(x, *others)

    return spy


@torch.no_grad()
def test_every_word_counts_and_padding_does_not() -> None:
    model, z, x, t = reading_prior(), noise(1, DIM, seed=1), noise(1, DIM, seed=2), torch.tensor([7])
    ids = tokens(1, 3)
    answer = model(z, x, model.time(t), tokens=ids)
    for place in (1, 2, 3):
        other = ids.clone()
        other[0, place] = 3 + (ids[0, place] - 2) % 17
        assert not torch.allclose(model(z, x, model.time(t), tokens=other), answer)
    padded = ids.clone()
    padded[0, 5] = 9
    assert torch.allclose(model(z, x, model.time(t), tokens=padded), answer, atol=1e-6)


@torch.no_grad()
def test_a_caption_that_is_dropped_is_as_if_there_were_none() -> None:
    model = reading_prior(drop=0.5)
    noised = model.noised(Pairs().batch(range(8)), generator())
    everything = noised | {"dropped": torch.ones(8, dtype=torch.bool)}
    other = everything | {"tokens": noised["tokens"].flip(0)}
    assert float(model.loss(everything)["loss"]) == pytest.approx(float(model.loss(other)["loss"]), rel=1e-6)
    bare = {name: value for name, value in everything.items() if name != "tokens"}
    assert not torch.allclose(model.loss(noised)["loss"], model.loss(everything)["loss"])
    with pytest.raises(UsageError, match="the batch lacks tokens"):
        model.loss(bare)
    with pytest.raises(UsageError, match="lacks tokens"):
        model.noised({"z_txt": noised["z_txt"], "z_img": noised["z_txt"]}, generator())


@torch.no_grad()
def test_a_prior_without_a_caption_reads_none() -> None:
    model, z = reading_prior(sigma_data=None), noise(3, DIM, seed=1)
    x, t = noise(3, DIM, seed=2), torch.full((3,), 9)
    silent = model.denoiser(z, guidance=1.0)(x, t).x_0
    emptied = model.network(
        model.text_space.to_model(z), x, model.time(t),
        states=torch.zeros(3, 2, WIDTH), valid=torch.zeros(3, 2, dtype=torch.bool),
    )  # fmt: skip
    assert torch.allclose(silent, model.noise_scheduler.x_0_from_eps(x, emptied, t), atol=1e-4)


@torch.no_grad()
def test_a_negative_caption_takes_the_place_of_none() -> None:
    model, z = reading_prior(), noise(2, DIM, seed=1)
    x, t, ids, against = noise(2, DIM, seed=2), torch.full((2,), 9), tokens(2, 3), tokens(2, 1, seed=5)
    avoided = Caption(noise(2, DIM, seed=8), against)
    guided = model.denoiser(z, tokens=ids, negative=avoided, guidance=3.0)(x, t).x_0
    full = model.denoiser(z, tokens=ids, guidance=1.0)(x, t).x_0
    null = model.denoiser(avoided.z_txt, tokens=against, guidance=1.0)(x, t).x_0
    assert torch.allclose(guided, null + 3 * (full - null), atol=1e-4)
    plain = model.denoiser(z, tokens=ids, guidance=3.0)(x, t).x_0
    assert not torch.allclose(plain, guided)


@torch.no_grad()
def test_candidates_of_a_caption_share_its_words() -> None:
    model, z, ids = reading_prior(T=T), noise(2, DIM, seed=1), tokens(2)
    drawn = model.sample_candidates(z, 3, 4, tokens=ids, seeds=[5, 6], guidance=2.0)
    assert drawn.shape == (2, 3, DIM)
    assert torch.allclose(drawn[:, 0], model.sample(z, 4, tokens=ids, seeds=[5, 6], guidance=2.0), atol=1e-5)
    alone = model.sample_candidates(z[1:], 3, 4, tokens=ids[1:], seeds=[6], guidance=2.0)
    assert torch.allclose(drawn[1:], alone, atol=1e-5)


# The decoder


@torch.no_grad()
def test_the_caption_reaches_attention_and_the_time_embedding() -> None:
    model = reading_decoder()
    network, z, x, t = model.network, noise(1, DIM), noise(1, 3, 8, 8, seed=3), torch.tensor([9])
    ids = tokens(1)
    answer = model(x, z, model.time(t), tokens=ids)
    for layer in (network.embed_text, network.context_text):
        weight = layer.weight.clone()
        layer.weight.zero_()
        assert not torch.allclose(model(x, z, model.time(t), tokens=ids), answer)
        layer.weight.copy_(weight)
    other = ids.clone()
    other[0, 2] = 3 + (ids[0, 2] - 2) % 17
    assert not torch.allclose(model(x, z, model.time(t), tokens=other), answer)


@torch.no_grad()
def test_a_caption_is_the_same_beside_a_longer_one() -> None:
    model, z, x, t = reading_decoder(), noise(2, DIM), noise(2, 3, 8, 8, seed=3), torch.tensor([9, 9])
    ids = torch.cat([tokens(1, 1), tokens(1, 4, seed=2)])
    both = model(x, z, model.time(t), tokens=ids)
    alone = model(x[:1], z[:1], model.time(t[:1]), tokens=ids[:1])
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_embedding_and_caption_are_dropped_at_their_own_rates() -> None:
    rows = 4000
    batch = {"z_img": noise(rows, DIM), "image": noise(rows, 3, 8, 8), "tokens": tokens(rows)}
    noised = reading_decoder(drop=0.1, caption_drop=0.5).noised(batch, generator())
    assert float(noised["dropped"].float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(noised["caption_dropped"].float().mean()) == pytest.approx(0.5, abs=0.03)
    both = (noised["dropped"] & noised["caption_dropped"]).float().mean()
    assert float(both) == pytest.approx(0.05, abs=0.015)  # independently


@torch.no_grad()
def test_image_and_text_have_scales_of_their_own() -> None:
    model, z, x, t = reading_decoder(), noise(2, DIM), noise(2, 3, 8, 8, seed=3), torch.tensor([9, 30])
    ids = tokens(2)
    none = model.denoiser(model.space.from_model(model.network.null_z[None]).expand(2, -1), guidance=1.0)(x, t).x_0
    image = model.denoiser(z, guidance=1.0)(x, t).x_0
    both = model.denoiser(z, tokens=ids, guidance=1.0)(x, t).x_0
    guided = model.denoiser(z, tokens=ids, guidance=3.0, text_guidance=5.0)(x, t).x_0
    assert torch.allclose(guided, none + 3 * (image - none) + 5 * (both - image), atol=1e-4)
    together = model.denoiser(z, tokens=ids, guidance=4.0)(x, t).x_0
    assert torch.allclose(together, none + 4 * (both - none), atol=1e-4)
    same = model.denoiser(z, tokens=ids, guidance=4.0, text_guidance=4.0)(x, t).x_0
    assert torch.allclose(same, together, atol=1e-4)


def test_a_decoder_that_reads_nothing_refuses_captions() -> None:
    for options in ({"tokens": tokens(1)}, {"text_guidance": 2.0}):
        with pytest.raises(UsageError, match="this decoder reads no captions"):
            decoder().denoiser(noise(1, DIM), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": TEXT}, "unet.text_dim must be 12"),
        ({"unet": {"text_dim": 4}}, "unet.text_dim must be 0"),
        ({"learned_variance": True}, "unet.out_channels must be 6 with learned_variance, got 3"),
        ({"unet": {"out_channels": 6}}, "unet.out_channels must be 3 without learned_variance, got 6"),
        ({"unet": {"known_channels": 3}}, "unet.known_channels must be 0, or 4 to fill holes, got 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(DecoderConfig, changes)


def test_conditions_of_an_encoder_that_is_not_there_are_none() -> None:
    assert caption_conditions(None, tokens(2)) == ({}, {})


@torch.no_grad()
def test_the_null_caption_is_one_row_for_all() -> None:
    text = awake(TextTransformer(parse(TextConfig, TEXT)))
    null, full = caption_conditions(text, tokens(3))
    assert null["states"].shape == (1, 5, WIDTH)
    assert not null["valid"].any()
    assert full["valid"].all()

    def network(x: Tensor, t: Tensor, condition: Any) -> Any:
        from dalle_2.sampling.denoiser import Denoised

        return Denoised(x * condition["valid"].float().mean(1)[:, None])

    x = noise(3, 4)
    assert torch.allclose(guide(network, [null, full], 2.0)(x, torch.zeros(3)).x_0, 2 * x)
