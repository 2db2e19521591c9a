"""--compile where its compiler is missing, or fails: one sentence, before anything is drawn."""

import importlib.machinery
import re
import sys
from pathlib import Path

import pytest
import torch

import dalle_2
from dalle_2.cli.main import _verdict, main
from dalle_2.errors import UsageError
from dalle_2.models import compiling
from dalle_2.models.compiling import require_compiler

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda:1", "mps"))


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is found, and no variable names one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", [["generate", "a red circle"], ["variations", "nothing.png"]])
def test_a_command_says_it_before_it_draws(
    command: list[str], micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--compile", "--pipeline", str(micro_pipeline), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"dalle2: --compile on cpu needs a C\+\+ compiler, and there is no \S+ here: install one, name yours by CXX, "
        r"or draw without --compile \(compiled=False\)\n",
        said,
    )
    assert not list(workdir.iterdir())


def test_so_does_python(micro_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(UsageError, match=r"there is no /nowhere/g\+\+ here"):
        dalle_2.load(micro_pipeline, device="cpu", compiled=True)


@pytest.mark.parametrize(("platform", "name"), [("linux", r"g\+\+"), ("darwin", r"clang\+\+"), ("win32", "cl")])
def test_a_processor_needs_what_its_system_calls_the_compiler(
    platform: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(UsageError, match=f"there is no {name} here"):
        require_compiler(CPU)
    monkeypatch.setenv("CXX", sys.executable)
    require_compiler(CPU)


def test_cuda_needs_triton_and_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--compile on cuda:1 needs the package triton, which isn't installed"):
        require_compiler(CUDA)
    monkeypatch.setattr(compiling, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    with pytest.raises(UsageError, match="--compile on cuda:1 needs a C compiler, and there is no gcc here"):
        require_compiler(CUDA)
    monkeypatch.setenv("CC", sys.executable)
    require_compiler(CUDA)


def test_a_macs_gpu_needs_nothing_further() -> None:
    require_compiler(MPS)


def test_a_compiler_that_fails_is_named_in_one_sentence() -> None:
    kind = type("CppCompileError", (RuntimeError,), {"__module__": "torch._inductor.exc"})
    sentence, status = _verdict(kind("Python.h: No such file or directory\nand 300 lines more"))
    assert status == 1
    assert sentence == (
        "torch.compile failed, CppCompileError: Python.h: No such file or directory: draw without --compile, or see "
        "--debug for all it says"
    )
