"""Pictures and trainings are the same whatever surrounds them: default dtype and device, autocast, inference mode."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import training_rig as rig
from PIL import Image
from torch import Tensor

from dalle_2 import DALLe2, Prior, load
from dalle_2.errors import UsageError
from dalle_2.images import to_pil
from dalle_2.inference.holes import holed
from dalle_2.inference.image_to_image import image_to_image
from dalle_2.inference.inpaint import inpaint, outpaint
from dalle_2.inference.plans import EditSettings
from dalle_2.inference.text_diff import text_diff
from dalle_2.models.checkpoints import load_model, save_model

PROMPT, FEW = "a red circle", EditSettings(steps=2)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}
surrounded = pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
# Every stage under what is most telling, and one under all.
TELLING = ["default bfloat16", "default device", "inference mode"]
CASES = [(kind, name) for kind in rig.MODELS for name in SURROUNDINGS if kind == "prior" or name in TELLING]
staged = pytest.mark.parametrize(
    ("kind", "around"), [(kind, SURROUNDINGS[name]) for kind, name in CASES], ids=map(" in ".join, CASES)
)


@pytest.fixture(scope="module")
def drafting(micro_pipeline: Path) -> DALLe2:
    """The micro pipeline with a decoder that works on a draft, so that edits steer its prior."""
    plain = load(micro_pipeline, device="cpu", dtype="fp32")
    draft = {"image_size": 16, "z_dim": 16, "width": 16, "depth": 1, "channels": 8}
    unet = {"low_res_channels": 3, "carry": True, "z_dim": 16}
    drawing = rig.awake(rig.decoder(unet, image_size=16, draft=draft, steps=2)).eval()
    return DALLe2(plain.prior, drawing, plain.clip_encoder, device="cpu", dtype="fp32")


def picture() -> Image.Image:
    return to_pil(torch.rand(3, 16, 16, generator=rig.generator(4), device="cpu", dtype=torch.float32) * 2 - 1)


# Drawing


@surrounded
def test_a_pipeline_draws_the_same_pictures(
    around: Callable[[], AbstractContextManager[Any]], micro_pipeline: Path
) -> None:
    """Read and run there, and run there once it was read elsewhere."""
    elsewhere = load(micro_pipeline, device="cpu", dtype="fp32")
    expected = elsewhere.generate([PROMPT, "a blue square"], 2, 0.5, seeds=3)
    with around():
        inside = load(micro_pipeline, device="cpu", dtype="fp32").generate([PROMPT, "a blue square"], 2, 0.5, seeds=3)
        again = elsewhere.generate([PROMPT, "a blue square"], 2, 0.5, seeds=3)
        assert elsewhere.generate([PROMPT], 1).shape == (1, 3, 32, 32)  # with seeds of its own
    assert inside.dtype == again.dtype == torch.float32
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("around", [SURROUNDINGS[name] for name in ("default bfloat16", "autocast")])
def test_edits_are_the_same(around: Callable[[], AbstractContextManager[Any]], drafting: DALLe2) -> None:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 8, 16, 16))

    def edited() -> list[Image.Image]:
        image = picture()
        made = [
            *inpaint(drafting, holed(image, mask, 16), PROMPT, candidates=4, settings=FEW),
            *text_diff(drafting, image, PROMPT, "a blue square", 2, by="direction", settings=FEW),
            *image_to_image(drafting, image, PROMPT, settings=FEW, strength=0.9),
            outpaint(drafting, image, PROMPT, right=8, candidates=4, settings=FEW),
        ]
        return [one.image for one in made]

    expected = edited()
    with around():
        made = edited()
    assert [one.tobytes() for one in made] == [one.tobytes() for one in expected]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "unipc"])
def test_samplers_take_the_same_steps(sampler: str, micro_pipeline: Path) -> None:
    """Real-valued timesteps are among them, which few digits would move."""
    pipeline = load(micro_pipeline, device="cpu", dtype="fp32")
    decoder, z = pipeline.decoder, torch.nn.functional.normalize(rig.noise(1, 16))
    decoder.settings = decoder.settings.model_copy(update={"spacing": "logsnr"})
    expected = pipeline.decode(z, 5, seeds=1, sampler=sampler)
    with default_dtype(torch.bfloat16):
        made = pipeline.decode(z, 5, seeds=1, sampler=sampler)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


# Building and reading


@staged
def test_what_is_built_there_learns_elsewhere(
    kind: str, around: Callable[[], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    with around():
        model = rig.MODELS[kind]()
    if any(parameter.is_meta for parameter in model.parameters()):
        with pytest.raises(UsageError, match=r"meta device .*to_empty"):
            rig.trainer(tmp_path, kind, model=model)
        return
    trainer = rig.trainer(tmp_path, kind, model=model)
    before = rig.weights(model)
    trainer.train_step(model.noised(batch(kind), rig.generator()))
    assert rig.all_finite(rig.weights(model))
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_what_is_built_follows_the_default_dtype(default: torch.dtype) -> None:
    """As PyTorch's own layers do; in few digits norms and timesteps stay in float32, as after `.bfloat16()`."""
    with default_dtype(default):
        model = rig.prior()
    assert model.network.query.dtype == default
    assert model.network.norm.weight.dtype == model.time.mlp[0].weight.dtype == max(default, torch.float32, key=digits)


def digits(dtype: torch.dtype) -> int:
    return dtype.itemsize


@staged
def test_what_is_read_there_is_in_float32_and_learns_elsewhere(
    kind: str, around: Callable[[], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    saved = rig.MODELS[kind]()
    save_model(saved, tmp_path / "plain.safetensors")
    with around():
        save_model(saved, tmp_path / "there.safetensors")
        model = load_model(tmp_path / "there.safetensors", kind)
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    rig.assert_same(dict(model.state_dict()), dict(saved.state_dict()))
    assert not any(x.is_inference() for x in [*model.parameters(), *model.buffers()])
    rig.trainer(tmp_path, kind, model=model).train_step(model.noised(batch(kind), rig.generator()))


def test_parts_of_a_pipeline_that_was_first_used_in_inference_mode_learn(micro_pipeline: Path, tmp_path: Path) -> None:
    pipeline = load(micro_pipeline, device="cpu", dtype="fp32")
    with torch.inference_mode():
        pipeline.generate([PROMPT], 1, seeds=1)
        z = pipeline.clip_encoder.encode_text([PROMPT])
    assert z.is_inference()
    prior = pipeline.prior
    assert isinstance(prior, Prior)
    rig.trainer(tmp_path, model=prior.requires_grad_(True)).train_step(
        prior.noised({"z_txt": z, "z_img": z}, rig.generator())
    )


# Training


def batch(kind: str) -> dict[str, Tensor]:
    return rig.Pairs(16 if kind == "upsampler" else 8).batch(range(4))


@staged
def test_a_training_is_the_same(kind: str, around: Callable[[], AbstractContextManager[Any]], tmp_path: Path) -> None:
    """From its first step over a save to its last."""
    models, rows = [rig.MODELS[kind]() for _ in range(3)], loader(kind)
    plain = rig.trainer(tmp_path / "plain", kind, model=models[0], dataloader=rows)
    plain.train(2)
    with around():
        trainer = rig.trainer(tmp_path / "there", kind, model=models[1], dataloader=rows)
        trainer.train(1)
        resumed = rig.trainer(tmp_path / "there", kind, model=models[2], dataloader=rows)
        assert resumed.resume()
        resumed.train(2)
    expected, made = plain.model.state_dict(), resumed.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6, msg=name)


def loader(kind: str) -> Any:
    rows = rig.Pairs(16 if kind == "upsampler" else 8, 8)
    return torch.utils.data.DataLoader([rows[k] for k in range(8)], batch_size=4, shuffle=True)


def test_a_training_step_of_rows_made_in_inference_mode(tmp_path: Path) -> None:
    model = rig.prior()
    with torch.inference_mode():
        noised = {name: value.clone() for name, value in model.noised(batch("prior"), rig.generator()).items()}
    assert noised["z_txt"].is_inference()
    model.loss(noised)["loss"].backward()  # a loop of one's own
    rig.trainer(tmp_path, model=model).train_step(noised)


# A whole process


def test_the_package_is_imported_and_draws_under_other_defaults(micro_pipeline: Path, tmp_path: Path) -> None:
    """In a process whose defaults were set first."""
    code = f"""
import torch
torch.set_default_dtype(torch.bfloat16)
torch.set_default_device("meta")
torch.set_num_threads(1)
import dalle_2
pipeline = dalle_2.load({str(micro_pipeline)!r}, device="cpu", dtype="fp32")
torch.save(pipeline.generate([{PROMPT!r}], 2, seeds=3), {str(tmp_path / "made.pt")!r})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    expected = load(micro_pipeline, device="cpu", dtype="fp32").generate([PROMPT], 2, seeds=3)
    torch.testing.assert_close(torch.load(tmp_path / "made.pt"), expected, rtol=0, atol=1e-5)
