"""Where networks run and in which numbers, and that sampling, training and the doctor agree about it."""

import types
from pathlib import Path

import apple_rig
import pytest
import torch

import dalle_2
from dalle_2 import DALLe2, NoiseScheduler, machine
from dalle_2.cli import doctor
from dalle_2.errors import UsageError
from dalle_2.models.placement import DTYPES, choose_device, choose_dtype
from dalle_2.sampling.denoiser import Denoised
from dalle_2.sampling.particles import steered
from dalle_2.training import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def cards(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Pretends that every CUDA device has this compute capability."""
    about = types.SimpleNamespace(name="card", total_memory=2**34, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((6, 1), "float32"), ((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")],
)
def test_a_card_computes_in_what_it_multiplies(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    cards(monkeypatch, capability)
    assert choose_dtype("auto", CUDA) == DTYPES[dtype]
    for transformer in (True, False):
        assert precision.choose_dtype("auto", CUDA, transformer=transformer) == DTYPES[dtype]
    assert f"default dtype {dtype})" in doctor._describe_cuda(torch, 0)


@pytest.mark.parametrize("flags", [(), ("amx_bf16",)])
def test_the_doctor_names_the_dtype_of_a_pipeline(monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    assert DTYPES[doctor._processor()["default dtype"]] == DALLe2(device="cpu").dtype


def test_on_a_processor_training_gains_and_convolutions_only_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag, convolutions in (("amx_bf16", torch.bfloat16), ("avx512_bf16", torch.float32)):
        monkeypatch.setattr(machine, "cpu_flags", lambda flag=flag: (flag,))
        assert precision.choose_dtype("auto", CPU, transformer=True) == torch.bfloat16
        assert precision.choose_dtype("auto", CPU, transformer=False) == convolutions
        assert choose_dtype("auto", CPU) == torch.float32


def test_a_named_dtype_is_taken() -> None:
    assert choose_dtype("float16", CUDA) == choose_dtype(torch.float16, CUDA) == torch.float16
    assert precision.choose_dtype("bf16", CPU, transformer=False) == torch.bfloat16
    with pytest.raises(UsageError, match="dtype must be auto, float32"):
        choose_dtype("int8", CPU)
    with pytest.raises(UsageError, match="fp16 training needs a GPU"):
        precision.choose_dtype("fp16", CPU, transformer=True)


@pytest.mark.parametrize(
    ("cuda", "apple", "chosen"), [(1, True, "cuda"), (1, False, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_a_graphics_card_comes_before_the_processor(
    monkeypatch: pytest.MonkeyPatch, cuda: int, apple: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    assert choose_device() == torch.device(chosen)
    assert choose_device("cpu") == torch.device("cpu")
    if chosen == "mps":
        assert choose_dtype("auto", choose_device(), large=True) == torch.float32


# On a Mac


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("apple")
@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_a_mac_draws_from_the_same_noise_without_float64(micro_pipeline: Path, sampler: str) -> None:
    given = {"steps": 2, "seeds": 1, "sampler": sampler}
    expected = dalle_2.load(micro_pipeline, device="cpu").generate(["a red circle"], **given)
    with apple_rig.Apple():
        pipeline = dalle_2.load(micro_pipeline)
        assert pipeline.device.type == pipeline.decoder.network.null_z.device.type == "mps"
        drawn = pipeline.generate(["a red circle"], **given).cpu()
    assert (drawn - expected).abs().max() < 1e-4


def test_particles_are_steered_on_a_mac() -> None:
    x_T = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    def ends(x: torch.Tensor) -> torch.Tensor:
        walked = steered(
            lambda x_t, t: Denoised(x_t / 2), x, 5, lambda x_0: x_0.square().sum(1), strength=2.0,
            noise_scheduler=NoiseScheduler(T=50), generator=torch.Generator().manual_seed(2),
        )  # fmt: skip
        return [step.x_0 for step in walked][-1]

    with apple_rig.Apple():
        drawn = ends(x_T.to("mps")).cpu()
    assert torch.equal(drawn, ends(x_T))


def test_the_rig_refuses_what_a_mac_refuses() -> None:
    with apple_rig.Apple():
        x = torch.ones(2).to("mps")
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)
        with pytest.raises(RuntimeError, match="random numbers on the device"):
            torch.randn_like(x)
