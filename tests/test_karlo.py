"""Karlo in the layout of diffusers against diffusers itself, on the same random weights; folders that are not whole."""

import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import dalle_2
from dalle_2 import DALLe2, Prior
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.inference.plans import EditSettings
from dalle_2.inference.reconstruct import reconstructions
from dalle_2.inference.variations import variations
from dalle_2.pipelines.karlo_export import export_karlo
from dalle_2.pipelines.karlo_types import PARTS, SCHEDULER, checked
from dalle_2.sampling.noise import PictureNoise

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPTS = ["a red fox", "green"]
SEEDS = [3, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("karlo")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return karlo_rig.build(folder)


@pytest.fixture(scope="module")
def ours(folder: Path, theirs: Any) -> DALLe2:
    return dalle_2.load(folder, device="cpu", dtype="float32")


@torch.no_grad()
def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# The parts


@torch.no_grad()
def test_every_network_gives_what_its_peer_gives(ours: DALLe2, theirs: Any) -> None:
    ids = theirs.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(ours.clip_encoder.tokenizer(PROMPTS), ids.input_ids)  # type: ignore[attr-defined]
    text = theirs.text_encoder(ids.input_ids)
    assert error(ours.clip_encoder.encode_text(PROMPTS), text.text_embeds) < 1e-5

    t, mask = torch.tensor([5, 999]), ids.attention_mask.bool()
    x = torch.randn(2, karlo_rig.DIM)
    wanted = theirs.prior(
        x, t, proj_embedding=text.text_embeds, encoder_hidden_states=text.last_hidden_state, attention_mask=mask
    ).predicted_image_embedding
    prior = ours.prior
    assert prior is not None
    assert error(prior(text.text_embeds, x, prior.time(t), tokens=ids.input_ids), wanted) < 1e-5

    z, pictures = torch.randn(2, karlo_rig.DIM), torch.randn(2, 3, karlo_rig.SIZE, karlo_rig.SIZE)
    context, added = theirs.text_proj(
        image_embeddings=z, prompt_embeds=text.text_embeds, text_encoder_hidden_states=text.last_hidden_state,
        do_classifier_free_guidance=False,
    )  # fmt: skip
    wanted = theirs.decoder(
        pictures, t, encoder_hidden_states=context, class_labels=added, attention_mask=F.pad(mask, (4, 0), value=True)
    ).sample
    assert error(ours.decoder(pictures, z, ours.decoder.time(t), tokens=ids.input_ids), wanted) < 1e-5

    (upsampler,) = ours.upsamplers
    small, large = pictures.clamp(-1, 1), torch.randn(2, 3, karlo_rig.LARGE, karlo_rig.LARGE)
    enlarged = F.interpolate(small, size=large.shape[-2:], mode="bicubic", align_corners=False, antialias=True)
    both = torch.cat([large, enlarged], dim=1)
    assert error(upsampler(large, small, None, upsampler.embed(t)), theirs.super_res_first(both, t).sample) < 1e-5
    assert upsampler.last is not None
    assert error(upsampler.last(large, t, None, enlarged), theirs.super_res_last(both, t).sample) < 1e-5


def test_settings_are_those_of_the_folder(ours: DALLe2) -> None:
    plan = ours.settings()
    assert [(run.steps, run.guidance, run.sampler) for run in plan.values()] == [
        (25, 4.0, "ddpm"), (25, 8.0, "ddpm"), (7, 1.0, "ddpm"),
    ]  # fmt: skip
    assert ours.size == karlo_rig.LARGE


def test_prior_and_decoder_share_the_text_encoder(ours: DALLe2) -> None:
    assert ours.prior is not None
    places = {part.caption.embedding.weight.data_ptr() for part in (ours.prior, ours.decoder)}  # type: ignore[union-attr]
    assert places == {ours.clip_encoder.model.text.embedding.weight.data_ptr()}  # type: ignore[attr-defined]


@torch.no_grad()
def test_what_hangs_on_the_condition_alone_is_computed_once_a_picture(
    ours: DALLe2, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ours.clip_encoder.tokenizer(PROMPTS)  # type: ignore[attr-defined]
    z, t = torch.randn(2, karlo_rig.DIM), torch.tensor([5, 999])
    prior, decoder = ours.prior, ours.decoder
    assert isinstance(prior, Prior)
    words = prior.caption.read(tokens)._asdict()  # type: ignore[union-attr]
    for part, name, x in (
        (prior, "read", torch.randn(2, karlo_rig.DIM)), (decoder, "tell", torch.randn(2, 3, 16, 16)),
    ):  # fmt: skip
        network, make = part.network, getattr(part.network, name)
        first = (z, x) if part is prior else (x, z)
        kept = make(z, **words)
        fresh = network(*first, part.time(t), **words)
        for _ in range(2):  # the first use leaves it as it was
            shared = network(*first, part.time(t), **{"told" if part is decoder else "read": kept})
            assert error(shared, fresh) < 1e-6
        calls: list[int] = []
        monkeypatch.setattr(network, name, lambda *given, make=make, calls=calls: calls.append(1) or make(*given))
        ours.generate(PROMPTS, 4, seeds=SEEDS)
        assert len(calls) == 1
        monkeypatch.undo()


# The whole


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws the noise that ours draws for SEEDS, and reckons with the noise table in float64.

    In float32 the first beta, which it divides by one minus alpha_bar, is off by five in ten thousand.
    """
    from diffusers.pipelines.deprecated.unclip import pipeline_unclip, pipeline_unclip_image_variation
    from diffusers.schedulers import scheduling_unclip

    streams = {
        (2, karlo_rig.DIM): PictureNoise(SEEDS, "prior"),
        (4, karlo_rig.SIZE): PictureNoise(SEEDS, "decoder"),
        (4, karlo_rig.LARGE): PictureNoise(SEEDS, f"upsampler-{karlo_rig.LARGE}"),
    }

    def draw(shape: Any, **given: Any) -> torch.Tensor:
        return streams[len(shape), shape[-1]](tuple(shape))

    for module in (pipeline_unclip, pipeline_unclip_image_variation, scheduling_unclip):
        monkeypatch.setattr(module, "randn_tensor", draw)


def exact(pipeline: Any, table: Any) -> Any:
    """The pipeline with our noise table, in float64."""
    for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        if scheduler := getattr(pipeline, name, None):
            scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = table.betas, table.alphas, table.alpha_bar
            scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return pipeline


def watched(pipeline: Any) -> dict[str, list[torch.Tensor]]:
    """What each stage of diffusers' pipeline holds after each step."""
    seen: dict[str, list[torch.Tensor]] = {}
    names = {"prior": "prior", "decoder": "decoder", "super_res": f"upsampler-{karlo_rig.LARGE}"}
    for there, here in names.items():
        scheduler = getattr(pipeline, f"{there}_scheduler", None)
        if scheduler is None:
            continue

        def step(*given: Any, _own: Any = scheduler.step, _name: str = here, **named: Any) -> Any:
            answer = _own(*given, **named)
            seen.setdefault(_name, []).append(answer.prev_sample.clone())
            return answer

        scheduler.step = step
    return seen


@pytest.mark.usefixtures("same_noise")
def test_a_prompt_becomes_the_same_picture(ours: DALLe2, theirs: Any) -> None:
    seen = watched(exact(theirs, ours.decoder.noise_scheduler))
    wanted = torch.tensor(theirs(PROMPTS, output_type="np").images).permute(0, 3, 1, 2)
    made: dict[str, list[torch.Tensor]] = {}
    drawn = ours.generate(PROMPTS, seeds=SEEDS, on_step=lambda name, step: made.setdefault(name, []).append(step.x_s))
    assert [len(steps) for steps in made.values()] == [25, 25, 7]
    assert {*made} == {*seen}
    for name, steps in made.items():
        assert max(map(error, steps, seen[name])) < 1e-3, name
    assert float(((drawn / 2 + 0.5).clamp(0, 1) - wanted).abs().max()) < 2e-3


@pytest.mark.usefixtures("same_noise")
def test_a_picture_becomes_the_same_variation(ours: DALLe2, theirs: Any, folder: Path) -> None:
    from diffusers import UnCLIPImageVariationPipeline
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    parts = {name: part for name, part in theirs.components.items() if not name.startswith("prior")}
    peer = UnCLIPImageVariationPipeline(image_encoder=encoder, feature_extractor=processor, **parts)
    peer.set_progress_bar_config(disable=True)
    noise = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    exact(peer, ours.decoder.noise_scheduler)
    wanted = torch.tensor(peer(picture, num_images_per_prompt=2, output_type="np").images).permute(0, 3, 1, 2)
    z = ours.encode_images([picture]).expand(2, -1)
    assert error(z[:1], encoder(processor(picture, return_tensors="pt").pixel_values).image_embeds) < 1e-4
    drawn = ours.upscale(ours.decode(z, seeds=SEEDS), z, seeds=SEEDS)
    assert float(((drawn / 2 + 0.5).clamp(0, 1) - wanted).abs().max()) < 2e-3


def test_edits_and_other_samplers_work_on_it(ours: DALLe2) -> None:
    (made,) = ours.generate(PROMPTS[:1], 3, seeds=1, sampler="dpm++2m")
    assert made.isfinite().all()
    picture = Image.new("RGB", (20, 20), "red")
    (one,) = variations(ours, [picture], 1, settings=EditSettings(steps=3, eta=0.8))
    assert one.image.size == (karlo_rig.LARGE, karlo_rig.LARGE)
    assert one.metadata["sampler"]["decoder"] == "ddim"  # the way back of an inversion, whatever the pipeline's own is


def test_a_reconstruction_says_what_it_needs_before_weights_are_read(copied: Path) -> None:
    pipeline = dalle_2.load(copied, device="cpu", dtype="float32")
    said = (
        f"the decoder of copy sees embeddings of {karlo_rig.DIM} numbers as they are, and a reconstruction needs one "
        "that was trained on principal directions of them: use such a pipeline, like shapes-tiny, or train one"
    )
    with pytest.raises(UsageError, match=said):
        reconstructions(pipeline, Image.new("RGB", (16, 16)))
    assert pipeline._planned_decoder.network.null_z.is_meta


def test_it_can_be_saved_as_a_pipeline_of_ours(copied: Path, tmp_path: Path) -> None:
    ours = dalle_2.load(copied, device="cpu", dtype="float32")  # of which nothing has been used yet
    again = dalle_2.load(dalle_2.save(ours, tmp_path / "own", dtype=None), device="cpu", dtype="float32")
    assert again.settings() == ours.settings()
    a, b = (pipeline.generate(PROMPTS[:1], 2, seeds=1) for pipeline in (ours, again))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.usefixtures("same_noise")
def test_diffusers_draws_the_same_picture_of_what_was_exported(
    ours: DALLe2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UnCLIPPipeline
    from diffusers.pipelines.deprecated.unclip import text_proj

    home = export_karlo(ours, tmp_path / "exported")
    # The published index names a module of that name, which newer releases want to be imported before.
    monkeypatch.setitem(sys.modules, "unclip", text_proj)
    peer = exact(UnCLIPPipeline.from_pretrained(home), ours.decoder.noise_scheduler)
    peer.set_progress_bar_config(disable=True)
    wanted = torch.tensor(peer(PROMPTS, output_type="np").images).permute(0, 3, 1, 2)
    for pipeline in (ours, dalle_2.load(home, device="cpu", dtype="float32")):
        drawn = pipeline.generate(PROMPTS, seeds=SEEDS)
        assert float(((drawn / 2 + 0.5).clamp(0, 1) - wanted).abs().max()) < 2e-3
    picture = Image.new("RGB", (16, 16), "red")
    again = dalle_2.load(home, device="cpu", dtype="float32")
    assert torch.equal(again.encode_images([picture]), ours.encode_images([picture]))
    with pytest.raises(UsageError, match="not empty"):
        export_karlo(ours, home)


def test_only_what_has_its_shape_can_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="doesn't have Karlo's shape"):
        export_karlo(dalle_2.load("shapes-tiny", device="cpu", dtype="float32"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


# Folders that are not whole


@pytest.fixture
def copied(folder: Path, theirs: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def weights(folder: Path, part: str) -> Path:
    return folder / part / "diffusion_pytorch_model.safetensors"


def refused(folder: Path, part: str = "") -> str:
    """The sentence that a folder is refused with, at once or when a part is first used."""
    with pytest.raises(CheckpointError) as caught:
        pipeline = dalle_2.load(folder, device="cpu", dtype="float32")
        _ = getattr(pipeline, part)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def test_a_missing_part_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "super_res_last")
    assert "lacks super_res_last" in refused(copied)


def test_a_pipeline_of_another_class_is_named(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    assert "is a StableDiffusionPipeline, and of diffusers' pipelines only UnCLIPPipeline," in refused(copied)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("decoder", {"block_out_channels": []}, "'block_out_channels' List should have at least 1 item"),
        ("decoder", {"block_out_channels": [32]}, "1 block_out_channels, 2 down_block_types and 2 up_block_types"),
        ("decoder", {"norm_num_groups": 7}, "channels 32 must be a multiple of groups 7"),
        ("decoder_scheduler", {"clip_sample_range": -1.0}, "'clip_sample_range' should be greater than 0, got -1.0"),
    ],
)
def test_settings_of_no_network_are_refused(copied: Path, part: str, changes: dict[str, Any], said: str) -> None:
    path = copied / part / ("scheduler_config.json" if part.endswith("scheduler") else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert said in refused(copied, "decoder")


ODD = ("12", [], [None], {}, None, -1, 0, float("nan"), float("inf"), 1e300, 10**12, 10**400, 2.5, True)


@pytest.mark.parametrize("part", [*PARTS, "prior_scheduler"])
def test_a_setting_of_no_type_or_size_is_named_with_its_file(part: str) -> None:
    path = Path(part, "config.json")
    types = PARTS.get(part, SCHEDULER)
    whole: dict[str, Any] = dict.fromkeys(("sample_size", "in_channels"), 64)
    whole |= {"block_out_channels": [32], "down_block_types": ["a"], "up_block_types": ["a"]}
    assert checked(part, whole, path) is whole
    for key in types:
        for odd in ODD:
            if isinstance(odd, int | float) and (key, odd) in {("eos_token_id", 0), ("pad_token_id", 0)}:
                continue
            if odd == 2.5 and key == "clip_sample_range":
                continue
            values = json.loads(json.dumps(whole | {key: odd}))  # which writes and reads NaN
            with pytest.raises(CheckpointError) as caught:
                checked(part, values, path)
            assert f"the settings in {path} can't be used: '{key}" in str(caught.value)
            assert len(str(caught.value)) < 300
    for key in types.keys() & whole:
        with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
            checked(part, {name: value for name, value in whole.items() if name != key}, path)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("text_encoder/config.json", {"num_hidden_layers": "2"}, "'num_hidden_layers' should be a valid integer"),
        ("image_encoder/config.json", {"patch_size": [8]}, "'patch_size' should be a valid integer, got [8]"),
        ("prior/config.json", {"num_layers": 10**9}, "'num_layers' should be less than or equal to"),
        ("prior_scheduler/scheduler_config.json", {"clip_sample_range": None}, "'clip_sample_range' should be a valid"),
        ("text_proj/config.json", {"cross_attention_dim": -4}, "'cross_attention_dim' should be greater than"),
        ("super_res_last/config.json", {"in_channels": None}, "'in_channels' should be a valid integer, got None"),
        ("feature_extractor/preprocessor_config.json", {"image_std": 0.5}, "'image_std' should be a valid list"),
    ],
)
def test_so_it_is_where_the_file_is_read(copied: Path, file: str, changes: dict[str, Any], said: str) -> None:
    path = copied / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    with pytest.raises(CheckpointError) as caught:
        dalle_2.load(copied, device="cpu", dtype="float32").settings()
    assert str(caught.value).startswith(f"the settings in {path} can't be used: {said}")


def test_an_index_that_names_no_class_or_nests_without_end(copied: Path) -> None:
    path = copied / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior": []}))
    assert "says that prior is a []" in refused(copied)
    path.write_text('{"a":' + "[" * 10**5)
    assert f"{path} can't be read as JSON" in refused(copied)


def test_texts_alone_are_enough_for_prompts(copied: Path) -> None:
    shutil.rmtree(copied / "image_encoder")
    pipeline = dalle_2.load(copied, device="cpu", dtype="float32")
    assert pipeline.embed(PROMPTS, 2).shape == (2, karlo_rig.DIM)
    with pytest.raises(UsageError, match="reads texts only"):
        pipeline.encode_images([Image.new("RGB", (8, 8))])


def test_without_a_prior_there_are_variations(copied: Path) -> None:
    shutil.rmtree(copied / "prior")
    pipeline = dalle_2.load(copied, device="cpu", dtype="float32")
    assert pipeline.prior is None
    (made,) = variations(pipeline, [Image.new("RGB", (8, 8), "blue")], 1, settings=EditSettings(steps=2))
    assert made.image.size == (karlo_rig.LARGE, karlo_rig.LARGE)


def test_all_wrong_tensors_are_named_by_their_own_names(copied: Path) -> None:
    path = weights(copied, "decoder")
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    tensors["conv_norm_out.weight"] = torch.ones(3)
    tensors["surplus"] = torch.ones(1)
    tensors["conv_out.bias"] = torch.ones(6, dtype=torch.int64)
    save_file(tensors, path)
    said = refused(copied, "decoder")
    for part in (
        "missing (1): conv_in.weight", "not known here (1): surplus", "conv_norm_out.weight is (3,) instead of (32,)",
        "no floating-point numbers (1): conv_out.bias",
    ):  # fmt: skip
        assert part in said


@pytest.mark.parametrize("part", ["text_encoder", "image_encoder"])
def test_so_are_those_of_both_encoders(copied: Path, part: str) -> None:
    tower, path = part.split("_")[0].replace("image", "vision"), copied / part / "model.safetensors"
    tensors = load_file(path)
    query, norm = (f"{tower}_model.encoder.layers.1.{name}" for name in ("self_attn.q_proj.weight", "layer_norm1.bias"))
    del tensors[query]
    tensors[f"{tower}_model.encoder.layers.0.self_attn.k_proj.weight"] = torch.ones(32, 7)
    tensors[norm] = torch.ones(3)
    tensors[f"{tower}_model.embeddings.position_ids"] = torch.arange(16)[None]  # older files have this constant
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        dalle_2.load(copied, device="cpu", dtype="float32").embed(PROMPTS, 2)
    said = str(caught.value)
    assert said.startswith(f"the tensors of {copied / part} don't fit: missing (1): {query}; of another shape (2): ")
    assert "layers.0.self_attn.k_proj.weight is (32, 7) instead of (32, 32)" in said
    assert f"{norm} is (3,) instead of (32,)" in said


def test_a_prior_that_never_got_its_statistics_is_refused(copied: Path) -> None:
    path = weights(copied, "prior")
    tensors = load_file(path)
    save_file(tensors | {"clip_std": torch.zeros(1, karlo_rig.DIM)}, path)
    assert "clip_std" in refused(copied, "prior")
    del tensors["clip_std"]
    save_file(tensors, path)
    assert "lacks clip_mean or clip_std" in refused(copied, "prior")


def test_a_truncated_file_is_refused(copied: Path) -> None:
    path = weights(copied, "decoder")
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated" in refused(copied, "decoder")


def test_weights_in_several_files_are_read(copied: Path, ours: DALLe2, theirs: Any) -> None:
    for part in ("decoder", "text_encoder"):
        shutil.rmtree(copied / part)
        getattr(theirs, part).save_pretrained(copied / part, max_shard_size="100KB" if part == "decoder" else "40KB")
        assert len(list((copied / part).glob("*-of-*.safetensors"))) > 1
    loaded = dalle_2.load(copied, device="cpu", dtype="float32")
    assert torch.equal(loaded.generate(PROMPTS[:1], 2, seeds=1), ours.generate(PROMPTS[:1], 2, seeds=1))
    file = min((copied / "decoder").glob("*-of-*.safetensors"))
    file.unlink()
    assert f"there is no weight file {file}" in refused(copied, "decoder")
    index = next((copied / "decoder").glob("*.index.json"))
    index.write_text('{"weight_map": {"conv_in.weight": 5}}')
    assert f"{index} is damaged: it has no weight_map of file names" in refused(copied, "decoder")


def test_a_pickle_is_read_without_running_it(copied: Path, ours: DALLe2, tmp_path: Path) -> None:
    path = weights(copied, "decoder")
    plain = path.with_suffix(".bin")
    torch.save(load_file(path), plain)
    path.unlink()
    loaded = dalle_2.load(copied, device="cpu", dtype="float32").decoder.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in ours.decoder.state_dict().items())
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    plain.write_bytes(pickle.dumps({"conv_in.weight": Evil()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a sentence is enough
        assert "could run code" in refused(copied, "decoder")
    assert not witness.exists()


def test_an_unknown_class_is_refused(copied: Path) -> None:
    path = copied / "model_index.json"
    index = json.loads(path.read_text()) | {"prior": ["diffusers", "SomethingElse"]}
    path.write_text(json.dumps(index))
    assert "says that prior is a 'SomethingElse', and only a PriorTransformer is known" in refused(copied)


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("prior", "added_emb_type", "none", "added_emb_type 'none' (known: 'prd')"),
        ("decoder", "down_block_types", ["DownBlock2D", "DownBlock2D"], "blocks of a kind"),
        ("decoder", "block_out_channels", [32, 48], "must be a multiple of the first"),
        ("decoder", "act_fn", "gelu", "act_fn 'gelu'"),
        ("text_proj", "time_embed_dim", 64, "don't belong together"),
        ("super_res_first", "sample_size", 24, "must be a multiple of low_res_size"),
        ("super_res_last", "layers_per_block", 1, "different shapes"),
        ("decoder_scheduler", "prediction_type", "sample", "prediction_type 'sample' (known: 'epsilon')"),
    ],
)
def test_settings_that_are_not_known_are_refused(copied: Path, part: str, name: str, value: Any, said: str) -> None:
    path = copied / part / ("scheduler_config.json" if part.endswith("scheduler") else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    used = {"prior": "prior", "super_res_first": "upsamplers", "super_res_last": "upsamplers"}.get(part, "decoder")
    assert said in refused(copied, used)
