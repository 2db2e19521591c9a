"""CLIP: agreement with transformers on the same weights, and a loss that is what the paper says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dalle_2.config import override
from dalle_2.errors import CheckpointError, ConfigError, UsageError
from dalle_2.models.clip import CLIP, CLIPConfig, contrastive, same_text
from dalle_2.models.embedding_space import EmbeddingSpace, check_same
from dalle_2.models.layers.attention import attend
from dalle_2.models.layers.side_tasks import phrases_of
from dalle_2.models.layers.transformer import Transformer
from dalle_2.weights.checkpoint import load_tensors
from dalle_2.weights.hf_clip import convert_config, convert_tensors

TINY = CLIPConfig.model_validate(
    {
        "vision": {"width": 32, "depth": 2, "heads": 4, "image_size": 16, "patch": 4, "stem": "conv"},
        "text": {"width": 24, "depth": 2, "heads": 3, "vocab_size": 40, "context_length": 10},
        "embed_dim": 20,
        "phrases": 64,
        "thumbnail": 8,
    }
)


def tokens(*rows: list[int]) -> torch.Tensor:
    """Start (1), the given ids, end (2), padding (0)."""
    return torch.tensor([[1, *row, 2] + [0] * (8 - len(row)) for row in rows])


def batch(count: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 40, (count, 5), generator=generator).tolist()
    return {"image": torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1, "tokens": tokens(*rows)}


# Against transformers


def peer(activation: str, eos: int):
    transformers = pytest.importorskip("transformers")
    text = {
        "vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 11, "hidden_act": activation,
        "bos_token_id": 58, "eos_token_id": eos, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 24, "patch_size": 8, "hidden_act": activation,
    }  # fmt: skip
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    ).eval()
    with torch.no_grad():  # away from zero biases and unit norms, which would hide a swapped name
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def theirs(model, kind: str, **inputs) -> torch.Tensor:
    output = getattr(model, f"get_{kind}_features")(**inputs)
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [59, 2])
@torch.no_grad()
def test_embeddings_agree_with_transformers(activation: str, eos: int):
    reference = peer(activation, eos)
    tensors = dict(reference.state_dict())
    tensors["text_model.embeddings.position_ids"] = torch.arange(11)[None]  # as in older files
    model = CLIP.from_config(convert_config(reference.config.to_dict()))
    load_tensors(model, convert_tensors(tensors), "the reference")

    x = torch.rand(5, 3, 24, 24) * 2 - 1
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (model.config.vision.mean, model.config.vision.std)
    )
    pixels = ((x + 1) / 2 - mean) / std
    assert difference(model.encode_image(x), theirs(reference, "image", pixel_values=pixels)) < 1e-5

    # The end token (59 is also the highest id) at several places, padded with itself and with another id.
    ids = torch.randint(3, 58, (4, 11))
    for row, end, pad in ((0, 3, 59), (1, 10, 59), (2, 6, 0), (3, 1, 59)):
        ids[row, end], ids[row, end + 1 :] = 59, pad
    assert difference(model.encode_text(ids), theirs(reference, "text", input_ids=ids)) < 1e-5
    states = reference.text_model(input_ids=ids).last_hidden_state
    assert difference(model.text_states(ids), states) < 1e-5
    assert model.log_scale == reference.logit_scale
    assert model.config.text.pool == ("highest" if eos == 2 else "eos")


def test_settings_that_the_layout_leaves_out_are_its_defaults():
    values = convert_config(
        {"model_type": "clip", "text_config": {"hidden_act": "gelu"}, "vision_config": None}
    )
    assert (values["embed_dim"], values["text"]["width"], values["text"]["activation"]) == (512, 512, "gelu")
    assert (values["vision"]["width"], values["vision"]["patch"], values["vision"]["heads"]) == (768, 32, 12)
    older = {
        "model_type": "clip",
        "text_config": {"hidden_size": 1},
        "text_config_dict": {"hidden_size": 768},
    }
    assert convert_config(older, {"image_mean": [0, 0, 0]})["text"]["width"] == 768
    with pytest.raises(CheckpointError, match="got model_type 'bert'"):
        convert_config({"model_type": "bert"})


def test_a_foreign_tensor_is_named():
    model = CLIP(TINY)
    with pytest.raises(CheckpointError, match=r"not known here \(1\): text_model\.adapter"):
        load_tensors(
            model, {**model.state_dict(), **convert_tensors({"text_model.adapter": torch.zeros(1)})}, "x"
        )


# The loss


def test_contrastive_loss_is_figure_3_of_the_paper():
    z_img, z_txt = F.normalize(torch.randn(2, 6, 8), dim=-1)
    logits = 5 * z_img @ z_txt.T
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    parts = contrastive(z_img, z_txt, torch.tensor(5.0), torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(parts["contrastive"], expected)


def test_equal_captions_are_no_negatives():
    rows = tokens([5, 6], [7], [5, 6], [8], [5, 6])
    same = same_text(rows)
    assert same[0].tolist() == [True, False, True, False, True]
    # With perfect embeddings the loss goes to 0; three times the same caption would otherwise cost log 3.
    z = F.one_hot(torch.tensor([0, 1, 0, 2, 0]), 4).float()
    parts = contrastive(z, z, torch.tensor(100.0), same)
    assert parts["contrastive"] < 1e-6
    assert parts["accuracy"] == 1
    assert contrastive(z, z, torch.tensor(100.0), torch.eye(5, dtype=torch.bool))["contrastive"] > 0.5


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_the_loss_is_finite_whatever_is_equal(captions: list[int]):
    same = same_text(tokens(*([3 + caption] for caption in captions)))
    z = F.normalize(torch.randn(2, len(captions), 4), dim=-1).requires_grad_()
    loss = contrastive(z[0], z[1], torch.tensor(10.0), same)["contrastive"]
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_training_learns_pairs_and_side_tasks():
    model, data = CLIP(TINY), batch()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.loss(data)
    assert abs(first["contrastive"].item() - math.log(12)) < 2.5
    for _ in range(150):
        parts = model.loss(model.noised(data, torch.Generator()))
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
    assert parts["accuracy"] == 1
    assert parts["contrastive"] < 0.1
    side = {"phrases_image", "phrases_text", "thumbnail", "thumbnail_text"}
    assert all(parts[name] < first[name] / 2 for name in side)
    assert set(parts) == {"loss", "contrastive", "accuracy"} | side
    assert not any(part.requires_grad for name, part in parts.items() if name != "loss")


def test_the_phrases_of_a_caption_are_its_runs_of_one_to_four_tokens():
    classes = 10_000_019  # so many that none of these few fall together
    rows = tokens([5, 6, 7, 8], [7, 6, 5, 8], [5, 6, 5, 6], [9], [])
    present = phrases_of(rows, (rows == 2).int().argmax(1), classes)
    assert present.sum(1).tolist() == [4 + 3 + 2 + 1, 4 + 3 + 2 + 1, 2 + 2 + 2 + 1, 1, 0]
    # The same four words in another order share the words alone: this is what ties a colour to its shape.
    assert (present[0] * present[1]).sum() == 4
    longer = torch.cat([rows, torch.full((5, 3), 33)], dim=1)
    assert torch.equal(phrases_of(longer, (rows == 2).int().argmax(1), classes), present)


def test_side_tasks_are_what_they_say():
    model, data = CLIP(TINY).eval(), batch(3)
    assert model.side is not None
    z_img, z_txt = F.normalize(torch.randn(2, 3, 20), dim=-1)
    ends = model.text.ends(data["tokens"])
    parts = model.side.losses(z_img, z_txt, data["image"], data["tokens"], ends)
    present = phrases_of(data["tokens"], ends, 64)
    odds = model.side.phrases(model.side.scale * z_txt).sigmoid()
    nats = -(present * odds.log() + (1 - present) * (1 - odds).log()).sum(1).mean()
    torch.testing.assert_close(parts["phrases_text"], nats)
    small = data["image"].unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    for name, z in (("thumbnail", z_img), ("thumbnail_text", z_txt)):
        drawn = model.side.picture(model.side.scale * z)
        torch.testing.assert_close(parts[name], ((drawn - small) ** 2).mean())


def test_every_parameter_gets_a_gradient():
    model = CLIP(TINY)
    model.loss(batch())["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_temperature_never_exceeds_100():
    model = CLIP(TINY)
    with torch.no_grad():
        model.log_scale.fill_(7)
    model.loss(batch())
    assert model.log_scale.exp().item() == pytest.approx(100)


def test_autocast_stays_close_and_the_loss_is_float32():
    model = CLIP(TINY)
    exact = model.loss(batch())
    with torch.autocast("cpu", torch.bfloat16):
        parts = model.loss(batch())
    assert parts["loss"].dtype == torch.float32
    assert abs(parts["contrastive"] - exact["contrastive"]) < 0.1
    parts["loss"].backward()


# Towers


@torch.no_grad()
def test_what_follows_the_end_token_has_no_influence():
    model = CLIP(TINY)
    clean = tokens([5, 6], [7, 8, 9])
    dirty = clean.clone()
    dirty[0, 5:], dirty[1, 6:] = 33, 34
    assert torch.allclose(model.encode_text(clean), model.encode_text(dirty), atol=1e-6)
    assert torch.allclose(model.encode_text(clean[:1]), model.encode_text(clean)[:1], atol=1e-6)
    assert not torch.allclose(model.encode_text(tokens([6, 5])), model.encode_text(tokens([5, 6])), atol=1e-3)
    assert model.text_states(clean).shape == (2, 10, 24)
    assert model.encode_text(clean[:0]).shape == (0, 20)


def test_inputs_of_another_size():
    model = CLIP(TINY)
    with pytest.raises(UsageError, match="pictures of 8 px, this CLIP reads 16 px"):
        model.encode_image(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="got 11 tokens"):
        model.text_states(torch.zeros(1, 11, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision.heads": 5}, "multiple of heads"),
        ({"vision.patch": 5}, "multiple of patch 5"),
        ({"vision.patch": 1}, "patch must be 2, 4, 8"),
        ({"text.context_length": 1}, "context_length"),
        ({"text.with": 3}, "did you mean 'width'"),
        ({"logit_scale": 200}, "logit_scale"),
        ({"thumbnail": 12}, "multiple of 8"),
    ],
)
def test_settings_that_can_not_be(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        override(TINY, changes)


@pytest.mark.parametrize("vision", [{"stem": "patch"}, {"stem": "conv"}, {"stem_blocks": 2, "pool": "grid"}])
def test_it_is_rebuilt_from_its_config(vision: dict):
    changes = {f"vision.{name}": value for name, value in vision.items()}
    model = CLIP(override(TINY, changes | {"phrases": 0, "thumbnail": 0}))
    again = CLIP.from_config(model.config.model_dump(mode="json"))
    load_tensors(again, model.state_dict(), "memory")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.encode_image(x), model.encode_image(x))
    assert again.side is None
    assert set(again.loss(batch())) == {"loss", "contrastive", "accuracy"}


# The shared transformer


def explicit(q, k, v, keep):
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~keep, -math.inf)
    return scores.softmax(-1) @ v


def test_attention_is_its_formula_and_half_precision_trains():
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    keep = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(attend(q, k, v, causal=True), explicit(q, k, v, keep))
    torch.testing.assert_close(attend(q, k, v, keep=keep), explicit(q, k, v, keep))
    halves = [part.bfloat16().requires_grad_() for part in (q, k, v)]
    y = attend(*halves, causal=True)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), explicit(q, k, v, keep), atol=0.05, rtol=0.05)
    y.sum().backward()
    assert halves[0].grad is not None


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_padding_changes_nothing(causal: bool):
    model = Transformer(16, 2, 4, causal=causal)
    x = torch.randn(2, 6, 16)
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    y = model(x, valid)
    torch.testing.assert_close(y[0], model(x)[0])
    torch.testing.assert_close(y[1, :4], model(x[1:, :4])[0])
    nothing = model(x, torch.zeros(2, 6, dtype=torch.bool))
    assert nothing.isfinite().all()


@torch.no_grad()
def test_a_causal_transformer_sees_no_future():
    model = Transformer(16, 2, 4, causal=True)
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(model(x)[:, :4], model(changed)[:, :4])
    assert not torch.allclose(model(x)[:, 4:], model(changed)[:, 4:])


@torch.no_grad()
def test_the_residual_stream_keeps_its_size_at_any_depth():
    for depth in (2, 24):
        y = Transformer(64, depth, 4)(torch.randn(4, 10, 64))
        assert 0.9 < y.std() < 2


def test_a_transformer_that_can_not_be():
    with pytest.raises(ConfigError, match="10 can't be divided among 4 heads"):
        Transformer(10, 1, 4)


# The embedding space


@given(st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_whitening_and_back(dim: int):
    z = torch.randn(7, dim, dtype=torch.float64) * 3 + 1
    mean, std = z.mean(0).tolist(), (z.std(0, correction=0) + 1e-3).tolist()
    space = EmbeddingSpace(dim=dim, normalised=False, mean=tuple(mean), std=tuple(std), scale=2.0)
    seen = space.to_model(z)
    assert seen.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(space.from_model(seen), z)
    plain = EmbeddingSpace(dim=dim, scale=3.0)
    torch.testing.assert_close(plain.from_model(plain.to_model(z)), z)
    torch.testing.assert_close(plain.finish(z).norm(dim=-1), torch.ones(7, dtype=torch.float64))
    assert space.finish(z) is z


def test_a_basis_leaves_out_the_other_directions_and_nothing_more():
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0][:4]
    space = EmbeddingSpace(dim=6, basis=tuple(map(tuple, basis.tolist())), mean=(0.1,) * 4, std=(0.5,) * 4)
    assert space.width == 4
    z = torch.nn.functional.normalize(torch.randn(7, 6, dtype=torch.float64), dim=-1)
    kept = space.finish(z @ basis.T @ basis)
    seen = space.to_model(z)
    assert seen.shape == (7, 4)
    torch.testing.assert_close(space.to_model(kept), seen)
    torch.testing.assert_close(space.from_model(seen), kept)
    raw = EmbeddingSpace(dim=6, normalised=False, basis=space.basis)
    torch.testing.assert_close(raw.to_model(z), z @ basis.T)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"basis": ((1.0, 0.0, 0.0),)}, "a direction of 3 numbers doesn't fit embeddings of 2"),
        ({"basis": ()}, "basis needs 1 to 2 directions, got 0"),
        ({"basis": ((1.0, 0.0),), "mean": (0, 0), "std": (1, 1)}, "mean has 2 numbers, the basis has 1"),
        ({"mean": (0, 0), "std": (1, 0)}, "above 0 everywhere, got 0.0 in dimension 1"),
        ({"mean": (0, 0)}, "both or neither"),
        ({"mean": (0,), "std": (1,)}, "mean has 1 numbers, an embedding has 2"),
        ({"scale": 0}, "scale"),
    ],
)
def test_a_space_that_can_not_be(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        override(EmbeddingSpace(dim=2), values)


def test_parts_of_different_spaces_are_named():
    space = EmbeddingSpace(dim=4)
    check_same(space, EmbeddingSpace(dim=4, scale=2), ("CLIP", "the prior"))
    with pytest.raises(
        UsageError, match="CLIP works with L2-normalised embeddings of 4 numbers and the prior with raw"
    ):
        check_same(space, EmbeddingSpace(dim=4, normalised=False), ("CLIP", "the prior"))
    with pytest.raises(UsageError, match="of 8 numbers"):
        check_same(space, EmbeddingSpace(dim=8), ("CLIP", "the prior"))
