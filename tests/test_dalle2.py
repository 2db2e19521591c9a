"""The whole model: what `generate` takes and gives, that a picture hangs on its seed, and what is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import dalle_2
from dalle_2 import DALLe2, DDIMSampler, Decoder, NoiseScheduler, Prior
from dalle_2.errors import CheckpointError, Dalle2Error, UsageError
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.prior import PriorConfig

PROMPTS = ["a red circle", "a blue square", "a red square above a blue circle", "a blue circle"]
STAGES = ["prior", "decoder", "upsampler-32"]


@pytest.fixture
def pipeline(micro_pipeline: Path) -> DALLe2:
    return dalle_2.load(micro_pipeline, device="cpu")


def small_decoder(size: int, z_dim: int = 16) -> Decoder:
    unet = {"channels": 16, "multiples": (1,), "blocks": 1, "attention": (), "middle_attention": False}
    unet |= {"patch": 8, "z_dim": z_dim, "t_dim": 16}
    return Decoder.from_config(DecoderConfig.model_validate({"image_size": size, "steps": 1, "unet": unet}))


# What comes out


def test_generate_gives_a_picture_for_each_prompt(pipeline: DALLe2) -> None:
    x = pipeline.generate(PROMPTS[:2], seeds=0)
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == torch.float32
    assert -1 <= x.min() < x.max() <= 1


def test_a_lone_prompt_is_one_prompt(pipeline: DALLe2) -> None:
    assert pipeline.generate("a red circle", 1, seeds=0).shape == (1, 3, 32, 32)


def test_parts_load_when_first_used(micro_pipeline: Path) -> None:
    files = [micro_pipeline / f"{name}.safetensors" for name in ("prior", "decoder", "upsampler-32")]
    pipeline = DALLe2(files[0], str(files[1]), upsampler_paths=files[2:], device="cpu")
    assert pipeline._prior == files[0]
    assert isinstance(pipeline.prior, Prior)
    assert pipeline.prior is pipeline.prior
    assert pipeline._decoder == str(files[1])
    assert pipeline.size == 32
    assert not pipeline.decoder.training


def test_a_part_is_replaced_by_assignment(pipeline: DALLe2) -> None:
    before = pipeline.generate(PROMPTS[:1], seeds=0)
    pipeline.upsamplers = ()
    pipeline.decoder = small_decoder(24)
    after = pipeline.generate(PROMPTS[:1], seeds=0)
    assert before.shape[-1] == 32
    assert after.shape[-1] == 24


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_decoder_alone_is_enough(pipeline: DALLe2, size: int) -> None:
    lone = DALLe2(None, small_decoder(size), pipeline.clip_encoder, device="cpu")
    assert lone.generate(PROMPTS[:1], 1, seeds=0).shape == (1, 3, size, size)


def test_stages_in_turn_equal_generate(pipeline: DALLe2) -> None:
    """`generate` is embed, decode, upscale; every stage has its own stream of noise."""
    z = pipeline.embed(PROMPTS, seeds=5)
    x = pipeline.decode(z, seeds=5)
    large = pipeline.upscale(x, z, seeds=5)
    assert z.shape == (4, 16)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
    assert torch.equal(large, pipeline.generate(PROMPTS, seeds=5))
    assert torch.equal(x, pipeline.generate(PROMPTS, seeds=5, last_stage="decoder"))


def test_without_a_prior_the_text_embedding_is_decoded(pipeline: DALLe2) -> None:
    z_txt = pipeline._encode_text(PROMPTS)
    assert torch.equal(pipeline.embed(PROMPTS, use_prior=False), z_txt)
    baseline = pipeline.generate(PROMPTS, seeds=5, use_prior=False, last_stage="decoder")
    assert torch.equal(baseline, pipeline.decode(z_txt, seeds=5))
    pipeline.prior = None
    assert torch.equal(baseline, pipeline.generate(PROMPTS, seeds=5, last_stage="decoder"))


def test_upscale_embeds_the_pictures_itself(pipeline: DALLe2) -> None:
    picture = Image.new("RGB", (16, 16), (200, 30, 30))
    x = dalle_2.images.from_pil(picture)[None]
    z = pipeline._encode_images([picture])
    assert torch.equal(pipeline.upscale(x, seeds=[3]), pipeline.upscale(x, z, seeds=[3]))


# Seeds


def test_the_same_seed_gives_the_same_bytes(pipeline: DALLe2) -> None:
    assert torch.equal(pipeline.generate(PROMPTS, seeds=7), pipeline.generate(PROMPTS, seeds=[7, 8, 9, 10]))
    assert not torch.equal(pipeline.generate(PROMPTS, seeds=7), pipeline.generate(PROMPTS, seeds=8))


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_picture_is_the_same_alone_and_in_a_batch(pipeline: DALLe2, eta: float) -> None:
    together = pipeline.generate(PROMPTS, None, eta, seeds=7, micro_batch=4)
    in_pairs = pipeline.generate(PROMPTS, None, eta, seeds=7, micro_batch=3)
    alone = pipeline.generate([PROMPTS[3]], None, eta, seeds=10)
    for other in (in_pairs[3], alone[0]):
        near = (together[3] - other).abs() * 127.5 <= 1
        assert near.float().mean() >= 0.999


def test_without_seeds_pictures_follow_the_global_generator(pipeline: DALLe2) -> None:
    torch.manual_seed(3)
    first, second = (pipeline.generate(PROMPTS[:1], 1) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, pipeline.generate(PROMPTS[:1], 1))
    assert not torch.equal(first, second)


# Settings


def test_steps_hold_for_every_stage_unless_it_has_its_own(pipeline: DALLe2) -> None:
    seen: list[tuple[str, int]] = []
    pipeline.generate(
        PROMPTS[:1], 4, seeds=0, stage_steps={"upsampler": 1},
        on_step=lambda stage, step: seen.append((stage, step.total)),
    )  # fmt: skip
    assert seen == [("prior", 4)] * 4 + [("decoder", 4)] * 4 + [("upsampler-32", 1)]


def test_defaults_come_from_the_parts_then_the_pipeline_then_the_call(pipeline: DALLe2) -> None:
    assert [run.steps for run in pipeline.settings().values()] == [3, 3, 2]
    pipeline.defaults = pipeline.defaults.model_copy(
        update={"steps": {"prior": 9}, "guidance": {"decoder": 2.5, "upsampler": 1.5}}
    )
    assert [run.steps for run in pipeline.settings().values()] == [9, 3, 2]
    assert [run.guidance for run in pipeline.settings().values()] == [1.0, 2.5, 1.5]
    assert [run.guidance for run in pipeline.settings(guidance=4).values()] == [1.0, 4.0, 1.5]
    chosen = pipeline.settings(6, 0.5, guidance={"prior": 3}, stage_steps={"decoder": 8})
    assert list(chosen) == STAGES
    assert [run.steps for run in chosen.values()] == [6, 8, 6]
    assert {run.eta for run in chosen.values()} == {0.5}
    assert chosen["prior"].guidance == 3.0


def test_guidance_reaches_the_stage_it_names(pipeline: DALLe2) -> None:
    plain, z = pipeline.embed(PROMPTS, seeds=1), pipeline.embed(PROMPTS, seeds=1, guidance=4.0)
    assert not torch.allclose(plain, z)
    guided = pipeline.generate(PROMPTS, seeds=1, guidance={"prior": 4.0}, last_stage="decoder")
    assert torch.equal(guided, pipeline.decode(z, seeds=1))
    stronger = pipeline.generate(PROMPTS, seeds=1, guidance=4.0, last_stage="decoder")
    assert torch.equal(stronger, pipeline.decode(plain, seeds=1, guidance=4.0))


def test_own_samplers_are_used_and_a_foreign_table_is_refused(pipeline: DALLe2) -> None:
    pipeline.decoder_sampler = DDIMSampler(NoiseScheduler(1000))
    assert pipeline.generate(PROMPTS[:1], 1, seeds=0).shape == (1, 3, 32, 32)
    pipeline.decoder_sampler = DDIMSampler(NoiseScheduler(500))
    with pytest.raises(UsageError, match="noise table"):
        pipeline.generate(PROMPTS[:1], 1, seeds=0)


def test_a_given_model_stays_in_its_mode(pipeline: DALLe2) -> None:
    decoder = small_decoder(16).train()
    DALLe2(None, decoder, pipeline.clip_encoder, device="cpu").generate(PROMPTS[:1], 1)
    assert decoder.training
    assert all(parameter.requires_grad for parameter in decoder.parameters())


# Numbers that overflow


def test_bfloat16_is_near_float32(micro_pipeline: Path, pipeline: DALLe2) -> None:
    half = dalle_2.load(micro_pipeline, device="cpu", dtype="bfloat16")
    z = pipeline.embed(PROMPTS, seeds=2)
    exact, near = pipeline.decode(z, seeds=2), half.decode(z, seeds=2)
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    assert (exact - near).abs().mean() < 0.05


def test_an_overflow_is_repeated_in_float32(micro_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = dalle_2.load(micro_pipeline, device="cpu", dtype="bfloat16")
    sample, calls = pipeline.decoder.sample, []

    def overflowing(*args: object, **options: object) -> torch.Tensor:
        calls.append(torch.is_autocast_enabled("cpu"))
        x = sample(*args, **options)  # type: ignore[arg-type]
        return x * float("nan") if calls[-1] else x

    monkeypatch.setattr(pipeline.decoder, "sample", overflowing)
    assert pipeline.decode(pipeline.embed(PROMPTS[:1], seeds=0), seeds=0).isfinite().all()
    assert calls == [True, False]


def test_what_stays_not_finite_is_an_error_and_no_picture(pipeline: DALLe2) -> None:
    with torch.no_grad():
        pipeline.decoder.network.conv_out.bias.fill_(float("nan"))
    with pytest.raises(Dalle2Error, match="the decoder gave values that are not finite"):
        pipeline.generate(PROMPTS[:1], seeds=0)


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": ["a", " \n"]}, "prompt 2 of 2 is empty"),
        ({"prompts": ["x" * 10_001]}, "10,001 characters, at most 10,000"),
        ({"prompts": ["\udcff"]}, "not valid text"),
        ({"steps": 0}, "steps must be a whole number from 1 to 1000 for the prior, got 0"),
        ({"steps": -3}, "got -3"),
        ({"steps": 1001}, "got 1001"),
        ({"eta": 1.0}, "eta must be at least 0 and below 1, got 1.0"),
        ({"eta": -0.1}, "got -0.1"),
        ({"guidance": -1.0}, "guidance must be a number from 0 up for the decoder"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"guidance": {"painter": 2.0}}, "no stage 'painter': its stages are prior, decoder, upsampler-32"),
        ({"stage_steps": {"upsampler-256": 2}}, "no stage 'upsampler-256'"),
        ({"last_stage": "prior"}, "no stage 'prior' makes pictures"),
        ({"seeds": [1, 2, 3]}, "got 3 seeds for 1 pictures"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(pipeline: DALLe2, call: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        pipeline.generate(**({"prompts": ["a red circle"]} | call))
    assert "\n" not in str(caught.value)


def test_parts_of_another_clip_are_refused(pipeline: DALLe2) -> None:
    pipeline.prior = Prior.from_config(PriorConfig(dim=24, width=32, depth=1, heads=2))
    with pytest.raises(UsageError, match="the CLIP encoder works with .* 16 numbers and the prior with .* 24"):
        pipeline.generate(PROMPTS[:1])
    with pytest.raises(UsageError, match="24"):
        pipeline.embed(PROMPTS[:1])


def test_embeddings_and_pictures_of_another_shape_are_refused(pipeline: DALLe2) -> None:
    with pytest.raises(UsageError, match=r"the decoder takes embeddings of shape \(N, 16\), got \(2, 8\)"):
        pipeline.decode(torch.zeros(2, 8))
    with pytest.raises(UsageError, match="the given picture has 24 px, but the upsampler-32 takes 16 px"):
        pipeline.upscale(torch.zeros(1, 3, 24, 24), torch.zeros(1, 16))
    pipeline.decoder = small_decoder(24)
    with pytest.raises(UsageError, match="the decoder's picture has 24 px"):
        pipeline.generate(PROMPTS[:1])


def test_missing_parts_are_named(pipeline: DALLe2) -> None:
    with pytest.raises(UsageError, match="no decoder"):
        DALLe2(None, None, pipeline.clip_encoder, device="cpu").generate(["a"])
    pipeline.upsamplers = ()
    with pytest.raises(UsageError, match="pipeline micro has no upsampler"):
        pipeline.upscale(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "no device is called 'tpu'"),
        ({"device": "cuda:99"}, "device cuda:99 isn't available"),
        ({"device": "cpu", "dtype": "int8"}, "dtype must be auto, float32, bfloat16"),
        ({"device": "cpu", "dtype": torch.int8}, "got torch.int8"),
    ],
)
def test_unknown_places_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DALLe2(**options)


# Weight files of single models


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    decoder = small_decoder(16)
    save_model(decoder, tmp_path / "decoder.safetensors", {"images": 12})
    loaded = load_model(tmp_path / "decoder.safetensors", "decoder")
    assert isinstance(loaded, Decoder)
    assert loaded.config == decoder.config
    assert not loaded.training
    assert loaded.provenance == {"images": 12}
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_provenance_survives_being_saved_again(tmp_path: Path) -> None:
    save_model(small_decoder(16), tmp_path / "a.safetensors", {"images": 12})
    save_model(load_model(tmp_path / "a.safetensors"), tmp_path / "b.pth")
    assert load_model(tmp_path / "b.pth").provenance == {"images": 12}


def test_half_precision_is_half_the_file_and_float32_again(tmp_path: Path) -> None:
    decoder = small_decoder(16)
    save_model(decoder, tmp_path / "whole.safetensors")
    save_model(decoder, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    assert {p.dtype for p in load_model(tmp_path / "half.safetensors").parameters()} == {torch.float32}


def test_files_that_are_no_such_model_are_refused(tmp_path: Path) -> None:
    from dalle_2.weights.checkpoint import save_checkpoint

    path = tmp_path / "decoder.safetensors"
    save_model(small_decoder(16), path)
    with pytest.raises(CheckpointError, match="holds a decoder, but a prior was expected"):
        load_model(path, "prior")
    save_checkpoint(path, "painter", {}, {})
    with pytest.raises(CheckpointError, match="'painter'.*upgrade"):
        load_model(path)
    save_checkpoint(path, "decoder", {"image_sice": 16}, {})
    with pytest.raises(CheckpointError, match="did you mean 'image_size'"):
        load_model(path)
    with pytest.raises(UsageError, match="a Linear can't be stored"):
        save_model(torch.nn.Linear(1, 1), path)
