"""Every stage takes tensors of any floating dtype, and computes in whatever dtype its weights were brought to."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import training_rig as rig
from torch import Tensor, nn

from dalle_2 import CLIPEncoder, DALLe2, load
from dalle_2.errors import UsageError
from dalle_2.models.captions import Caption
from dalle_2.models.decoder import Known
from dalle_2.models.layers.transformer import Transformer
from dalle_2.models.timestep_embedding import TimestepEmbedder
from dalle_2.sampling.noise_scheduler import NoiseScheduler

FLOATS = [torch.float16, torch.bfloat16, torch.float64]
WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16]
stages = pytest.mark.parametrize("kind", rig.MODELS)
# How far a picture or an embedding of a few steps may be off the one in float32; rows that were rounded differ in kind.
NEAR = {torch.float64: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}
SEEDS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    # Without dropout, so that two losses of the same rows are the same.
    plain = {**rig.MODELS, "decoder": lambda: rig.decoder(z_noise=0.1)}
    return {kind: rig.awake(build()) for kind, build in plain.items()}


def pairs(kind: str) -> dict[str, Tensor]:
    return rig.Pairs(16 if kind == "upsampler" else 8).batch(range(4))


def in_dtype(batch: dict[str, Tensor], real: torch.dtype, whole: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """The same batch of other dtypes; masks stay masks."""
    dtypes = {True: real, False: whole}
    return {k: v if v.dtype == torch.bool else v.to(dtypes[v.is_floating_point()]) for k, v in batch.items()}


def drawn(kind: str, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What a stage makes of a batch, in a few steps."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        if kind == "clip":
            return torch.cat([model.encode_image(batch["image"]), model.encode_text(batch["tokens"])])
        if kind == "draft":
            return model(model.space.to_model(batch["z_img"]))
        if kind == "upsampler":
            return model.sample(batch["z_img"], batch["image"][..., ::2, ::2], 3, seeds=SEEDS)
        if kind == "autoregressive_prior":
            return model.sample(batch["z_txt"], seeds=SEEDS)
        return model.sample(batch["z_txt"], 3, seeds=SEEDS)


# Tensors


@stages
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_clean_rows_of_any_dtype_are_learned_from(kind: str, dtype: torch.dtype, models: dict[str, Any]) -> None:
    """By the noise of the same generator, and hence with nearly the same loss as in float32."""
    model, rows = models[kind], pairs(kind)
    expected = model.loss(model.noised(rows, rig.generator()))["loss"]
    loss = model.loss(model.noised(in_dtype(rows, dtype, torch.int32), rig.generator()))["loss"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.01)


@stages
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_noised_rows_of_any_dtype_are_learned_from(
    kind: str, dtype: torch.dtype, models: dict[str, Any], tmp_path: Path
) -> None:
    """Each entry of a batch, through the trainer's own step."""
    model = copy.deepcopy(models[kind])
    noised = model.noised(pairs(kind), rig.generator())
    expected = float(model.loss(noised)["loss"].detach())
    trainer = rig.trainer(tmp_path, kind, model=model)
    assert trainer.train_step(in_dtype(noised, dtype)) == pytest.approx(expected, rel=0.02, abs=0.01)


@pytest.mark.parametrize(("kind", "whole"), [*(("prior", whole) for whole in WHOLE), ("decoder", torch.uint8),
                                           ("upsampler", torch.int32)])  # fmt: skip
def test_timesteps_of_any_integer_dtype(kind: str, whole: torch.dtype, models: dict[str, Any], tmp_path: Path) -> None:
    model = copy.deepcopy(models[kind])
    noised = model.noised(pairs(kind), rig.generator())
    expected = float(model.loss(noised)["loss"].detach())
    trainer = rig.trainer(tmp_path, kind, model=model)
    assert trainer.train_step({**noised, "t": noised["t"].to(whole)}) == pytest.approx(expected, rel=1e-5)


@stages
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_conditions_of_any_dtype_are_drawn_from(kind: str, dtype: torch.dtype, models: dict[str, Any]) -> None:
    rows = pairs(kind)
    # Rounded first, so that both see the very same numbers.
    rounded = in_dtype(in_dtype(rows, dtype), torch.float32)
    made = drawn(kind, models[kind], in_dtype(rows, dtype))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, drawn(kind, models[kind], rounded), rtol=1e-4, atol=1e-4)


@stages
def test_a_loader_of_rows_in_float64_trains(kind: str, tmp_path: Path) -> None:
    """As numpy's arrays become tensors; the last batch of an epoch has one row."""
    rows = in_dtype(rig.Pairs(16 if kind == "upsampler" else 8).batch(range(9)), torch.float64, torch.int32)
    data = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    trainer = rig.trainer(tmp_path, kind, dataloader=torch.utils.data.DataLoader(data, batch_size=4))
    trainer.train_one_epoch(0)
    assert trainer.images == 9
    assert trainer.skipped == 0
    assert rig.all_finite(rig.weights(trainer.model))


def test_a_centred_clip_learns_from_one_row_and_its_statistics_stay(models: dict[str, Any]) -> None:
    """One row has no variance; what ran along so far stands in for it."""
    model = copy.deepcopy(models["clip"]).train()
    model.loss(pairs("clip"))
    before = rig.weights(model)
    row = {name: value[:1] for name, value in pairs("clip").items()}
    model.loss(row)["loss"].backward()
    rig.assert_same(rig.weights(model), before)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    embedded = model.encode_image(row["image"])
    torch.testing.assert_close(embedded, model.eval().encode_image(row["image"]))


def test_x_t_made_by_hand_from_the_noise_table_trains(tmp_path: Path) -> None:
    """As the slides draw it: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps."""
    model = rig.prior()
    t, (x_0, z_txt, eps) = torch.tensor([0, 7, rig.T - 1]), torch.randn(3, 3, rig.DIM).unbind(0)
    alpha_bar = model.noise_scheduler.get_alpha_bar_t(t, 0.0)[:, None]
    z_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    assert z_t.dtype == torch.float32
    torch.testing.assert_close(z_t, model.noise_scheduler.add_noise(x_0, eps, t))
    rig.trainer(tmp_path, model=model).train_step({"z_t": z_t, "z_txt": z_txt, "t": t, "eps": eps})
    assert model(z_txt, z_t.double(), model.time(t)).shape == (3, rig.DIM)


# The noise table


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_noise_table_answers_in_the_default_dtype_and_keeps_its_digits(default: torch.dtype) -> None:
    scheduler, t = NoiseScheduler(1000), torch.tensor([0, 500, 999])
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        rows = [get(t) for get in (scheduler.get_beta_t, scheduler.get_alpha_t, scheduler.get_alpha_bar_t)]
    finally:
        torch.set_default_dtype(before)
    assert [row.dtype for row in rows] == [default] * 3
    for row, table in zip(rows, (scheduler.betas, scheduler.alphas, scheduler.alpha_bar), strict=True):
        assert torch.equal(row, table[t].to(default))
    assert scheduler.alpha_bar_at(t).dtype == scheduler.beta_at(t).dtype == torch.float64


@pytest.mark.parametrize("whole", [*WHOLE, torch.uint32, torch.uint64], ids=str)
def test_the_noise_table_takes_any_integers(whole: torch.dtype) -> None:
    scheduler, t = NoiseScheduler(1000), torch.tensor([0, 7, 100])
    assert torch.equal(scheduler.get_alpha_bar_t(t.to(whole)), scheduler.get_alpha_bar_t(t))
    with pytest.raises(UsageError, match=r"t must lie in 0 \.\.\. 99 .*got 100"):
        NoiseScheduler(100).get_alpha_bar_t(t.to(whole))
    x_0, x_t = torch.ones(2, 3, 4).unbind(0)  # s = t - 1 = -1 is clean data, and no unsigned number
    assert torch.equal(scheduler.posterior_mean(x_0, x_t, t.to(whole)), scheduler.posterior_mean(x_0, x_t, t))


# Weights


@stages
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_stage_of_any_dtype_draws_nearly_the_same(kind: str, dtype: torch.dtype, models: dict[str, Any]) -> None:
    rows = pairs(kind)
    expected = drawn(kind, models[kind], rows)
    for given in (torch.float32, dtype):
        made = drawn(kind, copy.deepcopy(models[kind]).to(dtype), in_dtype(rows, given))
        assert made.dtype == (dtype if kind == "draft" else torch.float32)  # a draft is a network without a sampler
        torch.testing.assert_close(made.float(), expected, rtol=0, atol=NEAR[dtype] * float(expected.abs().max()))


@stages
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_stage_of_another_dtype_learns(kind: str, dtype: torch.dtype, models: dict[str, Any], tmp_path: Path) -> None:
    model = copy.deepcopy(models[kind]).to(dtype)
    before = rig.weights(model)
    trainer = rig.trainer(tmp_path, kind, model=model)
    assert trainer.train_step(model.noised(pairs(kind), rig.generator())) > 0
    assert rig.all_finite(rig.weights(model))
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_in_float16_are_not_trained(tmp_path: Path) -> None:
    """Adam's sums of squares would be nothing there, and the weights NaN after one step."""
    with pytest.raises(UsageError, match=r"weights in float16 .* model\.float\(\)"):
        rig.trainer(tmp_path, model=rig.prior().half())


@pytest.mark.parametrize("bring", [nn.Module.half, nn.Module.bfloat16, lambda model: model.to(torch.float16)])
def test_norms_timesteps_captions_and_tables_keep_their_digits(bring: Any) -> None:
    """What the README says of a pipeline's dtype holds for `.half()`, too; the rest is as small as it was asked for."""
    text = {"width": 8, "depth": 1, "heads": 2, "vocab_size": 20, "context_length": 6}
    captioned = rig.prior(caption=text)
    for model in (captioned, rig.autoregressive_prior(), rig.drafting(), rig.upsampler(), rig.clip()):
        before = rig.weights(model)
        bring(model)
        exact = {
            f"{home}.{name}".lstrip(".")
            for home, part in model.named_modules()
            if isinstance(part, nn.LayerNorm | nn.GroupNorm) or getattr(part, "in_float32", False)
            for name, _ in part.named_parameters()
        } | {name for name, _ in model.named_buffers()}
        kept = {name for name, value in model.state_dict().items() if value.dtype == torch.float32}
        assert kept == exact & before.keys() - {"centre_image.num_batches_tracked", "centre_text.num_batches_tracked"}
        assert all(torch.equal(before[name], model.state_dict()[name]) for name in kept)
        assert len(kept) < len(before)
    assert {value.dtype for value in captioned.caption.state_dict().values()} == {torch.float32}


def test_gradients_go_along_when_a_model_changes_its_dtype() -> None:
    model = rig.prior()
    model.loss(model.noised(pairs("prior"), rig.generator()))["loss"].backward()
    for bring in (model.half, model.double, model.float):
        bring()
        assert all(p.grad is None or p.grad.dtype == p.dtype for p in model.parameters())


def test_parts_that_a_model_is_made_of_can_change_their_dtype_alone() -> None:
    assert TimestepEmbedder(8).half()(torch.tensor([1, 2])).shape == (2, 8)
    assert Transformer(8, 1, 2).half()(torch.randn(1, 3, 8).half()).dtype == torch.float16
    prior = rig.awake(rig.prior())
    expected = prior.sample(pairs("prior")["z_txt"], 3, seeds=SEEDS)
    prior.network.half()
    torch.testing.assert_close(prior.sample(pairs("prior")["z_txt"], 3, seeds=SEEDS), expected, rtol=0, atol=0.02)


# What stays one sentence


@pytest.mark.parametrize(("kind", "name"), [("decoder", "image"), ("upsampler", "image"), ("draft", "image"),
                                            ("clip", "image"), ("prior", "z_img")])  # fmt: skip
def test_whole_numbers_for_real_ones_are_refused(kind: str, name: str, models: dict[str, Any]) -> None:
    model, rows = models[kind], pairs(kind)
    wrong = {**rows, name: (rows[name] * 100).to(torch.uint8)}
    with pytest.raises(UsageError, match=rf"{name} must hold real numbers, got torch.uint8: .*127.5"):
        model.loss(model.noised(wrong, rig.generator()))


def test_real_numbers_for_tokens_are_refused(models: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"tokens must hold whole numbers, got torch.float32: .*tokens\.long"):
        models["clip"].loss({**pairs("clip"), "tokens": torch.ones(4, 6)})


# Whole pipelines


@pytest.fixture
def pipeline(micro_pipeline: Path) -> DALLe2:
    return load(micro_pipeline, device="cpu", dtype="fp32")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_pipeline_takes_tensors_of_any_dtype(pipeline: DALLe2, dtype: torch.dtype) -> None:
    generator = rig.generator()
    z, picture = rig.noise(2, 16), torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    z, picture = (x.to(dtype).float() for x in (torch.nn.functional.normalize(z), picture))
    z_low, picture_low = z.to(dtype), picture.to(dtype)
    hole = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    hole[..., :8] = True

    def both(call: Any, plain: tuple[Any, ...], low: tuple[Any, ...]) -> None:
        made = call(*low)
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, call(*plain), rtol=1e-4, atol=1e-4)

    both(lambda z: pipeline.decode(z, 2, seeds=1), (z,), (z_low,))
    both(lambda z, x: pipeline.decode(z, 2, seeds=1, start=x, strength=0.9), (z, picture), (z_low, picture_low))
    both(lambda z, x: pipeline.decode(z, 2, seeds=1, start=x), (z, picture), (z_low, picture_low))
    both(lambda z, x: pipeline.decode(z, 2, seeds=1, known=Known(x, hole)), (z, picture), (z_low, picture_low))
    both(lambda z, x: pipeline.invert(x, z, 2), (z, picture), (z_low, picture_low))
    both(lambda z, x: pipeline.upscale(x, z, 2, seeds=1), (z, picture), (z_low, picture_low))
    both(lambda z: pipeline.embed(["a", "b"], 2, seeds=1, start=z, strength=0.9), (z,), (z_low,))
    caption = Caption(z_low)
    assert pipeline.prior.sample(z_low, 2, seeds=[1, 2], guidance=2.0, negative=caption).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("part", ["prior", "decoder", "upsampler", "clip"])
def test_a_pipeline_draws_with_parts_of_any_dtype(pipeline: DALLe2, part: str, dtype: torch.dtype) -> None:
    expected = pipeline.generate(["a red circle"], 2, seeds=3)
    encoder = pipeline.clip_encoder
    assert isinstance(encoder, CLIPEncoder)
    parts = {"prior": pipeline.prior, "decoder": pipeline.decoder, "upsampler": pipeline.upsamplers[0]}
    (parts | {"clip": encoder.model})[part].to(dtype)  # type: ignore[union-attr]
    made = pipeline.generate(["a red circle"], 2, seeds=3)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, rtol=0, atol=2 * NEAR[dtype])
    assert encoder.encode_text(["a"]).dtype == torch.float32


def test_numbers_that_overflow_in_a_part_of_few_digits_are_drawn_again_in_float32(pipeline: DALLe2) -> None:
    """Whatever dtype the pipeline itself has."""
    pipeline.decoder.half()
    with torch.no_grad():
        pipeline.decoder.network.conv_in.weight.fill_(6e4)  # times pictures of 48 channels that is beyond float16
    assert pipeline.decode(torch.ones(1, 16), 2, seeds=1).isfinite().all()
