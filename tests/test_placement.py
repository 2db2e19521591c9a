"""Where networks run and in which numbers, and that sampling, training and the doctor agree about it."""

import types

import pytest
import torch

from dalle_2 import DALLe2, machine
from dalle_2.cli import doctor
from dalle_2.errors import UsageError
from dalle_2.models.placement import DTYPES, choose_dtype
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
