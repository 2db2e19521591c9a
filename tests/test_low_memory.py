"""Weights that are in memory only while they work, dtypes, and compiled networks: the pictures don't tell."""

import shutil
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from PIL import Image
from torch import nn

import dalle_2
from dalle_2 import DALLe2
from dalle_2.cli.main import main
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.decoder_unet import DecoderUNet
from dalle_2.models.prior_transformer import PriorTransformer
from dalle_2.models.rest import at_work, resting, whole, widened
from dalle_2.pipelines import karlo
from dalle_2.weights import kept

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPTS = ["a red fox", "green"]
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("karlo")
    karlo_rig.build(home)
    return home


def settle() -> None:
    """Waits for copies to be safe on the disk."""
    for thread in threading.enumerate():
        if thread.name.startswith("settle "):
            thread.join()


def load(folder: Path, dtype: str = "fp32", **wishes: bool) -> DALLe2:
    return dalle_2.load(folder, device="cpu", dtype=dtype, **wishes)


def parts(pipeline: DALLe2) -> dict[str, nn.Module]:
    clip: Any = pipeline.clip_encoder
    assert pipeline.prior is not None
    return {
        "text": clip.model.text, "vision": clip.model.vision, "prior": pipeline.prior, "decoder": pipeline.decoder,
        f"upsampler-{karlo_rig.LARGE}": pipeline.upsamplers[0],
    }  # fmt: skip


def present(pipeline: DALLe2) -> set[str]:
    """The parts that have weights in memory."""
    return {name for name, part in parts(pipeline).items() if not all(p.is_meta for p in part.parameters())}


# In memory from their first work on


def read(pipeline: DALLe2) -> set[str]:
    """The stages whose weights have been read; asking reads none."""
    return {name for name, part in pipeline._planned_stages().items() if not any(p.is_meta for p in part.parameters())}


def test_a_stage_is_read_when_it_begins_and_then_kept(folder: Path) -> None:
    pipeline, upsampler = load(folder), f"upsampler-{karlo_rig.LARGE}"
    assert not read(pipeline)
    seen: dict[str, set[str]] = {}
    drawn = pipeline.generate(PROMPTS, STEPS, seeds=1, on_step=lambda name, _: seen.setdefault(name, read(pipeline)))
    # The network of the last step is read at that step.
    assert seen == {"prior": {"prior"}, "decoder": {"prior", "decoder"}, upsampler: {"prior", "decoder"}}
    assert read(pipeline) == {"prior", "decoder", upsampler}
    kept = {name: part.state_dict() for name, part in pipeline.stages().items()}
    assert torch.equal(pipeline.generate(PROMPTS, STEPS, seeds=1), drawn)
    for name, part in pipeline.stages().items():
        assert all(value.data_ptr() == kept[name][key].data_ptr() for key, value in part.state_dict().items())


def test_clip_s_towers_are_read_by_whoever_uses_or_moves_them(folder: Path) -> None:
    first, second, third = (load(folder) for _ in range(3))
    encoders: list[Any] = [pipeline.clip_encoder for pipeline in (first, second, third)]
    model = encoders[0].model
    assert model.vision.positions.is_meta
    seen = model.encode_image(torch.zeros(1, 3, model.image_size, model.image_size))
    assert seen.isfinite().all()
    assert not model.vision.positions.is_meta
    assert not any(value.is_meta for value in encoders[1].to("cpu").model.state_dict().values())
    narrow = CLIPEncoder(encoders[2].model, tokenizer=encoders[2].tokenizer, dtype=torch.bfloat16)
    assert narrow.model.vision.positions.dtype == torch.bfloat16
    assert narrow.model.text.positions.dtype == torch.float32  # captions are read in float32 in any case
    assert not any(value.is_meta for value in narrow.model.state_dict().values())


def test_who_asks_for_a_part_has_it_with_its_weights(folder: Path) -> None:
    pipeline = load(folder)
    assert read(pipeline) == set()
    upsampler = pipeline.upsamplers[0]
    assert read(pipeline) == {f"upsampler-{karlo_rig.LARGE}"}
    assert pipeline.prior is pipeline.prior_of("diffusion") is not None
    assert read(pipeline) == {"prior", f"upsampler-{karlo_rig.LARGE}"}
    assert pipeline.stages()[f"upsampler-{karlo_rig.LARGE}"] is upsampler
    assert read(pipeline) == {*pipeline.stages()}


# In memory only at work


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_low_memory_gives_the_same_pictures_bit_for_bit(folder: Path, dtype: str) -> None:
    whole, lean = load(folder, dtype), load(folder, dtype, low_memory=True)
    seen: dict[str, set[str]] = {}
    drawn = lean.generate(PROMPTS, STEPS, seeds=1, on_step=lambda name, _: seen.setdefault(name, present(lean)))
    assert torch.equal(drawn, whole.generate(PROMPTS, STEPS, seeds=1))
    assert seen == {name: {name} for name in ("prior", "decoder", f"upsampler-{karlo_rig.LARGE}")}
    picture = Image.new("RGB", (16, 16), "red")
    assert torch.equal(lean.encode_images([picture]), whole.encode_images([picture]))
    assert not present(lean)
    assert present(whole) == {*parts(whole)}


def test_in_our_own_folders_too(micro_pipeline: Path) -> None:
    whole, lean = load(micro_pipeline), load(micro_pipeline, low_memory=True)
    assert torch.equal(lean.generate(["a red circle"], seeds=1), whole.generate(["a red circle"], seeds=1))
    assert all(weight.is_meta for weight in lean.decoder.parameters())


def test_the_network_of_the_last_step_takes_the_place_of_the_other(folder: Path) -> None:
    pipeline, seen = load(folder, low_memory=True), list[list[str]]()
    upsampler: Any = pipeline.upsamplers[0]
    networks = {"first": upsampler.network, "last": upsampler.last.network}

    def look(*_: Any) -> None:
        seen.append([name for name, network in networks.items() if not network.conv_in.weight.is_meta])

    for network in networks.values():
        network.register_forward_pre_hook(look)
    pipeline.generate(PROMPTS, 3, seeds=1)
    assert seen == [["first"], ["first"], ["last"]]
    assert all(weight.is_meta for weight in upsampler.parameters())


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("part", ["decoder", "super_res_first", "super_res_last"])
def test_a_bad_file_is_refused_before_anything_is_drawn(
    folder: Path, part: str, low_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dalle_2.pipelines.karlo import KarloParts

    own = KarloParts.tensors

    def tensors(self: KarloParts, name: str) -> dict[str, torch.Tensor]:
        return {n: t for n, t in own(self, name).items() if name != part or n != "conv_in.weight"}

    monkeypatch.setattr(KarloParts, "tensors", tensors)
    with pytest.raises(CheckpointError, match=rf"{part}.* missing \(1\): conv_in.weight"):
        load(folder, low_memory=low_memory).generate(PROMPTS, on_step=lambda *_: pytest.fail("a step was done"))


@pytest.mark.parametrize("part", ["prior", "super_res_last"])
def test_a_truncated_file_is_refused_before_anything_is_drawn(folder: Path, part: str, tmp_path: Path) -> None:
    copied = tmp_path / "karlo"
    shutil.copytree(folder, copied)
    with (copied / part / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 4)
    with pytest.raises(CheckpointError, match="is truncated"):
        load(copied).generate(PROMPTS, on_step=lambda *_: pytest.fail("a step was done"))


@pytest.mark.parametrize("kept", [False, True])
def test_a_part_within_may_rest_by_itself(kept: bool) -> None:
    """What it reads when the whole is in float32, say, is not lost when the whole is as before."""
    cpu, outer = torch.device("cpu"), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.float16)
    weights = {name: value.clone() for name, value in outer.state_dict().items()}
    inner = {name.removeprefix("1."): value for name, value in weights.items() if name.startswith("1.")}
    outer = outer.to("meta")
    resting(outer[1], cpu, lambda: inner, kept=kept)
    resting(outer, cpu, lambda: {name: value for name, value in weights.items() if name.startswith("0.")})
    with at_work(outer), widened(outer):
        assert outer[0].weight.dtype == torch.float32
        assert outer[1].weight.is_meta
        with at_work(outer[1]):
            assert torch.equal(outer[1].weight, weights["1.weight"])
    assert outer[0].weight.is_meta
    assert outer[1].weight.is_meta != kept


def test_the_commands_take_it(
    micro_pipeline: Path, workdir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call: call)
    command = ["a red circle", "--pipeline", str(micro_pipeline), "--device", "cpu", "--dtype", "fp32", "--seed", "3"]
    for wishes in ([], ["--low-memory", "--compile"]):
        assert main(["generate", *command, *wishes]) == 0
    pictures = [Image.open(path).tobytes() for path in sorted((workdir / "generations").glob("*.png"))]
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]
    assert capfd.readouterr().err.count("compiling, the first step beyond the others: prior") == 1


def test_what_is_not_in_memory_is_not_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without low_memory"):
        dalle_2.save(load(folder, low_memory=True), tmp_path / "saved")


def test_a_part_may_rest_on_another_device() -> None:
    """As the CPU's memory is for a CUDA device; the meta device stands for that here."""
    layer = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    resting(layer, torch.device("meta"))
    assert {value.device.type for value in layer.state_dict().values()} == {"cpu"}
    with at_work(layer), at_work(layer):
        assert {value.device.type for value in layer.state_dict().values()} == {"meta"}
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@torch.no_grad()
def test_large_pictures_go_through_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dalle_2.models import upsampler as home

    upsampler = load(folder).upsamplers[0]
    small, x = torch.randn(3, 3, karlo_rig.SIZE, karlo_rig.SIZE), torch.randn(3, 3, karlo_rig.LARGE, karlo_rig.LARGE)
    t, rows = torch.full((3,), 500), list[int]()
    upsampler.network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    together = upsampler.denoiser(None, low_res=small)(x, t).x_0
    monkeypatch.setattr(home, "MAP_ON_CPU", 32 * karlo_rig.LARGE**2)
    alone = upsampler.denoiser(None, low_res=small)(x, t).x_0
    assert rows == [3, 1, 1, 1]
    assert float((alone - together).abs().max()) < 1e-5  # of pictures, which rest on 1e-6 of noise


# Dtypes


def test_what_is_delicate_stays_in_float32(folder: Path) -> None:
    pipeline = load(folder, "bf16")
    upsampler, decoder = pipeline.upsamplers[0], pipeline.decoder
    assert upsampler.last is not None
    assert {weight.dtype for weight in upsampler.last.parameters()} == {torch.float32}
    assert decoder.network.conv_in.weight.dtype == torch.bfloat16
    assert decoder.network.norm_out.weight.dtype == decoder.time.mlp[0].weight.dtype == torch.float32
    said: dict[str, set[torch.dtype]] = {}
    watched = {"last": upsampler.last, "first": upsampler.network, "time": decoder.time, "text": decoder.caption}
    for name, module in watched.items():
        forward = "states" if name == "text" else "forward"
        own = getattr(module, forward)

        def watching(*given: Any, name: str = name, own: Any = own, **named: Any) -> Any:
            answer = own(*given, **named)
            said.setdefault(name, set()).add(answer.dtype)
            return answer

        setattr(module, forward, watching)
    steps: set[torch.dtype] = set()
    pipeline.generate(PROMPTS, STEPS, seeds=1, on_step=lambda _, step: steps.update({step.x_0.dtype, step.x_s.dtype}))
    assert said == {"first": {torch.bfloat16}} | {name: {torch.float32} for name in ("last", "time", "text")}
    assert steps == {torch.float32}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_a_file_is_mapped_only_while_its_weights_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dalle_2.weights.aligned.MOST_COPIED", 0)  # as if they were large
    wide, narrow = load(folder), load(folder, "bf16")
    path = str(folder / "prior" / "diffusion_pytorch_model.safetensors")
    for pipeline, mapped in ((narrow, False), (wide, True)):
        assert pipeline.prior is not None
        assert (path in Path("/proc/self/maps").read_text()) == mapped


@pytest.mark.parametrize("low_memory", [False, True])
def test_copies_that_are_kept_change_no_picture(
    folder: Path, low_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load(folder, "bf16", low_memory=low_memory).generate(PROMPTS, STEPS, seeds=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "LEAST_BYTES", 0)
    assert torch.equal(load(folder, "bf16", low_memory=low_memory).generate(PROMPTS, STEPS, seeds=1), wanted)
    settle()
    monkeypatch.setattr(karlo.KarloParts, "_pieces", lambda *given: pytest.fail("it was changed once more"))
    assert torch.equal(load(folder, "bf16", low_memory=low_memory).generate(PROMPTS, STEPS, seeds=1), wanted)
    names = sorted(path.name.rpartition("-")[0] for path in tmp_path.rglob("*.safetensors"))
    # The last step is in float32: of its weights only those are copied that were joined.
    assert names == ["decoder-bfloat16", "prior-bfloat16", "super_res_first-bfloat16", "super_res_last-float32"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_in_float32_weights_stay_where_they_lie_in_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dalle_2.weights.aligned.MOST_COPIED", 0)  # as if they were large
    pipeline = load(folder)
    upsampler: Any = pipeline.upsamplers[0]
    whole(upsampler.last)
    for part, model in {"decoder": pipeline.decoder, "super_res_last": upsampler.last}.items():
        path = str(folder / part / "diffusion_pytorch_model.safetensors")
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)]
        places = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
        inside = {
            name
            for name, value in model.network.state_dict().items()
            if any(first <= value.data_ptr() < end for first, end in places)
        }
        convolutions = {name for name, value in model.network.state_dict().items() if value.ndim == 4}
        assert convolutions
        assert convolutions <= inside


@torch.no_grad()
def test_a_network_in_bfloat16_says_nearly_the_same(folder: Path) -> None:
    z, x, t = torch.randn(2, karlo_rig.DIM), torch.randn(2, 3, karlo_rig.SIZE, karlo_rig.SIZE), torch.tensor([9, 500])
    answers = []
    for dtype in ("fp32", "bf16"):
        decoder = load(folder, dtype).decoder
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            answers.append(decoder(x, z, decoder.time(t)).float())
    assert float((answers[0] - answers[1]).abs().max() / answers[0].abs().max()) < 0.03


def test_what_overflows_is_done_again_in_float32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(folder, "bf16")
    convolution = pipeline.decoder.network.conv_out
    own, dtypes = convolution.forward, []

    def forward(x: torch.Tensor) -> torch.Tensor:
        dtypes.append(convolution.weight.dtype)
        return own(x) * (float("inf") if dtypes[-1] == torch.bfloat16 else 1)

    monkeypatch.setattr(convolution, "forward", forward)
    assert pipeline.generate(PROMPTS[:1], 1, seeds=1).isfinite().all()
    assert dtypes == [torch.bfloat16, torch.float32]
    assert convolution.weight.dtype == torch.bfloat16
    with widened(pipeline.decoder):
        assert {weight.dtype for weight in pipeline.decoder.parameters()} == {torch.float32}


# Compiled


def test_every_network_is_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setenv("CXX", sys.executable)  # whatever there is, it isn't called here
    monkeypatch.setattr(torch, "compile", lambda call: compiled.append(call.__self__) or call)
    pipeline = load(folder, compiled=True)
    expected = load(folder).generate(PROMPTS, STEPS, seeds=1)
    assert torch.equal(pipeline.generate(PROMPTS, STEPS, seeds=1), expected)
    assert Counter(map(type, compiled)) == {PriorTransformer: 1, DecoderUNet: 3}
