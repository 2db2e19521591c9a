"""The front door: what loads, what it says, how it fails, and the two commands that need no model."""

import errno
import json
import os
import subprocess
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from PIL import Image

import dalle_2
from dalle_2 import errors
from dalle_2.cli import doctor, main
from dalle_2.config import Settings
from dalle_2.images import save_image
from dalle_2.published import DEFAULT_CLIP

HEAVY = {"torch", "numpy", "transformers", "diffusers", "huggingface_hub", "torchvision"}


def loaded_after(code: str) -> set[str]:
    """The packages that a fresh process holds after running `code`."""
    code += "\nimport sys; print('|'.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split("|"))


class TestLightDoor:
    def test_import_loads_nothing_heavy(self) -> None:
        assert not loaded_after("import dalle_2") & (HEAVY | {"pydantic", "PIL", "typer"})

    def test_help_loads_nothing_heavy(self) -> None:
        assert not loaded_after("from dalle_2.cli.main import main; main(['--help'])") & (
            HEAVY | {"pydantic"}
        )

    def test_show_loads_nothing_heavy(self, tmp_path: Path) -> None:
        save_image(Image.new("RGB", (4, 4)), tmp_path / "x.png", {"seed": 3})
        code = f"from dalle_2.cli.main import main; main(['show', {str(tmp_path / 'x.png')!r}])"
        assert not loaded_after(code) & HEAVY

    def test_ground_loads_nothing_heavy(self) -> None:
        ground = "import dalle_2.errors, dalle_2.config, dalle_2.paths, dalle_2.machine, dalle_2.metadata"
        assert not loaded_after(ground) & HEAVY


class TestPublicNames:
    def test_each_is_the_one_of_its_file(self) -> None:
        import importlib

        for name, home in dalle_2._HOME.items():
            assert getattr(dalle_2, name) is getattr(importlib.import_module(f"dalle_2.{home}"), name)

    def test_the_table_the_list_and_the_types_agree(self) -> None:
        source = Path(dalle_2.__file__).read_text()
        for name, home in dalle_2._HOME.items():
            assert f"from dalle_2.{home} import {name} as {name}\n" in source
        assert set(dalle_2.__all__) == {*dalle_2._HOME, "__version__"}
        assert set(dalle_2.__all__) <= set(dir(dalle_2))

    def test_an_unknown_name(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'Decodr'"):
            dalle_2.Decodr  # noqa: B018

    def test_version(self) -> None:
        assert dalle_2.__version__ == metadata.version("dalle_2")


class TestHelp:
    @pytest.mark.parametrize("arguments", [[], ["--help"]])
    def test_lists_every_command(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(arguments) == 0
        out = capsys.readouterr().out
        for name, summary in main.COMMANDS.items():
            assert name in out
            assert summary in out

    @pytest.mark.parametrize("name", list(main.COMMANDS))
    def test_every_command_has_help(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"Usage: dalle2 {name}" in out

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["--version"]) == 0
        assert capsys.readouterr().out == f"dalle_2 {dalle_2.__version__}\n"

    def test_as_a_module_and_as_a_script(self) -> None:
        script = Path(sys.executable).with_name("dalle2")
        for command in ([sys.executable, "-m", "dalle_2"], [str(script)]):
            done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (0, f"dalle_2 {dalle_2.__version__}\n")


class Numbers(Settings):
    steps: int = 1


FAULTS: dict[str, tuple[BaseException, int, str]] = {
    "usage": (errors.UsageError("steps must be at least 1, got 0"), 2, "steps must be at least 1, got 0"),
    "config": (errors.ConfigError("unknown key 'a'"), 2, "unknown key 'a'"),
    "data": (errors.DataError("the folder x is empty"), 1, "the folder x is empty"),
    "full": (OSError(errno.ENOSPC, "No space", "x.png"), 1, "the disk is full while writing x.png: free"),
    "denied": (PermissionError(errno.EACCES, "Permission denied", "x.png"), 1, "Permission denied: x.png"),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted"),
    "surprise": (
        RuntimeError("shapes differ\nsecond line"),
        1,
        "RuntimeError: shapes differ (--debug shows where)",
    ),
    "silent": (AssertionError(), 1, "AssertionError (--debug shows where)"),
    "import": (ModuleNotFoundError("No module named 'x'", name="x"), 1, "can't import x"),
}


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command `fail KIND` that meets the fault of that name."""

    def fail(kind: str, n: Annotated[int, typer.Option(min=1)] = 1) -> None:
        if kind == "settings":
            Numbers(steps="many")  # type: ignore[arg-type]
        if kind == "warn":
            warnings.warn("unknown word: zebra", UserWarning, stacklevel=1)
        if kind in FAULTS:
            raise FAULTS[kind][0]

    monkeypatch.setitem(sys.modules, "dalle_2.cli.fail", types.SimpleNamespace(fail=fail))  # type: ignore[misc]
    monkeypatch.setitem(main.COMMANDS, "fail", "Fail.")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


@pytest.mark.usefixtures("fail")
class TestFailing:
    @pytest.mark.parametrize("kind", list(FAULTS))
    def test_one_sentence_and_a_status(self, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
        _, status, sentence = FAULTS[kind]
        assert main.main(["fail", kind]) == status
        caught = capsys.readouterr()
        assert caught.out == ""
        assert caught.err.startswith(f"dalle2: {sentence}")
        assert caught.err.count("\n") == 1

    @pytest.mark.parametrize("arguments", [["--debug", "fail", "data"], ["fail", "data", "--debug"]])
    def test_debug_shows_the_traceback_and_keeps_the_status(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main.main(arguments) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.endswith("dalle2: the folder x is empty\n")

    def test_after_two_dashes_debug_is_a_word(self) -> None:
        assert main._take_debug(["fail", "--", "--debug"]) == (["fail", "--", "--debug"], False)
        assert main._take_debug(["--debug", "fail", "--", "--debug"]) == (["fail", "--", "--debug"], True)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["genrate"], "no command 'genrate': did you mean 'generate'?"),
            (["zzz"], "no command 'zzz': there are generate, train,"),
            (["--bad"], "No such option: --bad: dalle2 --help lists what it takes"),
            (["fail"], "Missing argument 'kind': dalle2 fail --help lists what it takes"),
            (["fail", "data", "--n", "0"], "Invalid value for '--n': "),
            (["fail", "data", "more"], "Got unexpected extra argument"),
            (["fail", "settings"], "'steps' should be a valid integer, unable to parse"),
        ],
    )
    def test_wrong_usage(
        self, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.lower().startswith(f"dalle2: {sentence}".lower())
        assert err.count("\n") == 1

    def test_a_misspelt_option_is_told_from_one_that_there_is_not(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["variations", "x.png", "--sampler", "ddim"]) == 2
        assert capsys.readouterr().err == (
            "dalle2: No such option: --sampler: dalle2 variations --help lists what it takes\n"
        )
        assert main.main(["variations", "x.png", "--guidence", "2"]) == 2
        said = capsys.readouterr().err
        assert "--guidance" in said
        assert "--device" not in said

    def test_a_wrong_value_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["fail", "data", "--n", "-7"]) == 2  # typer's own words for it change with its version
        said = capsys.readouterr().err
        assert "-7" in said
        assert "Value error" not in said

    def test_a_warning_is_a_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["fail", "warn"]) == 0
        assert capsys.readouterr().err == "dalle2: warning: unknown word: zebra\n"


class TestShow:
    @pytest.fixture
    def made(self, tmp_path: Path) -> Path:
        save_image(Image.new("RGB", (4, 4)), tmp_path / "x.jpg", {"prompt": "ein Kreis – rot", "steps": 20})
        return tmp_path / "x.jpg"

    def test_reads_back(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["show", str(made)]) == 0
        assert capsys.readouterr().out == f"{made}\n  prompt  ein Kreis – rot\n  steps   20\n"

    def test_json(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["show", str(made), str(made), "--json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line) for line in lines] == [
            {"file": str(made), "prompt": "ein Kreis – rot", "steps": 20}
        ] * 2

    def test_foreign_and_missing_pictures(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "foreign.png")
        assert main.main(["show", str(tmp_path / "foreign.png")]) == 1
        assert "foreign.png says nothing about how it was made" in capsys.readouterr().err
        assert main.main(["show", str(tmp_path / "none.png")]) == 1
        assert "there is no file" in capsys.readouterr().err
        (tmp_path / "words.png").write_text("no picture")
        for name, why in {"words.png": "its content is no known picture format", "": "Is a directory"}.items():
            assert main.main(["show", str(tmp_path / name)]) == 1
            assert capsys.readouterr().err.endswith(f" as a PNG or JPEG picture: {why}\n")


class Installed:
    """A pretended set of installed packages: name -> (version, requirements)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **packages: tuple[str, list[str]]) -> None:
        self.packages = packages
        monkeypatch.setattr(doctor.metadata, "version", lambda name: self._find(name)[0])
        monkeypatch.setattr(doctor.metadata, "requires", lambda name: self._find(name)[1])

    def _find(self, name: str) -> tuple[str, list[str]]:
        if name not in self.packages:
            raise metadata.PackageNotFoundError(name)
        return self.packages[name]


class TestDoctor:
    def test_report(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["doctor"]) == 0
        out = capsys.readouterr().out
        for word in (
            "environment",
            "packages",
            "processor",
            "default dtype",
            "hub models",
            "shipped pipelines",
        ):
            assert word in out

    def test_json_tells_the_truth(self, capsys: pytest.CaptureFixture[str]) -> None:
        import torch

        assert main.main(["doctor", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["sections"]["torch"]["version"] == torch.__version__
        assert report["sections"]["torch"]["threads"] == torch.get_num_threads()
        assert report["sections"]["packages"]["numpy"] == metadata.version("numpy")
        assert not [found for found in report["findings"] if found["level"] == "broken"]

    def test_a_clip_works_offline_when_all_of_it_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        home = tmp_path / f"models--{DEFAULT_CLIP.replace('/', '--')}"

        def offline() -> bool:
            assert main.main(["doctor", "--json"]) in (0, 1)
            caches = json.loads(capsys.readouterr().out)["sections"]["caches"]
            return bool(next(value for key, value in caches.items() if "works offline" in key))

        assert not offline()
        folder = home / "snapshots" / "0"
        folder.mkdir(parents=True)
        assert not offline()
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0")
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            assert not offline()
            (folder / name).write_text("{}")
        assert offline()
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text("no json")
        (folder / "other.safetensors").write_text("")
        assert not offline()

    def test_works_without_torch(self, tmp_path: Path) -> None:
        """In a process where torch can't be found at all."""
        code = (
            "import sys, importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
            "from dalle_2.cli.main import main; status = main(['doctor', '--json'])\n"
            "assert 'torch' not in sys.modules; sys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert json.loads(done.stdout)["sections"]["torch"] == {}

    def test_a_torch_that_fails_to_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: str) -> Any:
            raise OSError("libcudart.so.13: cannot open shared object file")

        monkeypatch.setattr(doctor.importlib, "import_module", fail)
        (found,) = doctor.find_torch_faults(doctor._torch())
        assert found.level == "broken"
        assert "libcudart.so.13" in found.what

    def test_missing_and_old_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        requirements = ["torch>=2.6", "numpy>=1.26", "einops>=0.8", "pytest>=8; extra == 'dev'"]
        Installed(
            monkeypatch,
            dalle_2=("0.1.0", requirements),
            torch=("2.10.1+cpu", []),
            numpy=("1.9.0", []),
        )
        found = list(doctor.find_missing())
        assert [fault.what for fault in found] == [
            "numpy is 1.9.0, at least 1.26 is needed",
            "einops is not installed",
        ]
        assert {fault.level for fault in found} == {"broken"}

    @pytest.mark.parametrize(
        ("torch", "torchvision", "pin", "fault"),
        [
            ("2.13.0+cpu", "0.28.0+cpu", "torch==2.13.0", None),
            ("2.13.0+cpu", "0.27.0+cpu", "torch==2.12.0", "is made for torch 2.12.0"),
            ("2.13.0+cpu", "0.27.0", "torch (==2.12.0)", "is made for torch 2.12.0"),
            ("2.13.0+cpu", "0.28.0+cu130", "torch==2.13.0", "builds for different hardware"),
            ("2.13.0", "0.28.0", "torch==2.13.0", None),
            ("2.13.0", "0.28.0", "torch", None),
        ],
    )
    def test_torchvision(
        self, monkeypatch: pytest.MonkeyPatch, torch: str, torchvision: str, pin: str, fault: str | None
    ) -> None:
        Installed(monkeypatch, torch=(torch, []), torchvision=(torchvision, ["numpy", pin]))
        found = list(doctor.find_torch_mismatch("torchvision"))
        assert [fault in trap.what for trap in found] == ([True] if fault else [])
        assert all("pip uninstall torchvision" in trap.cure for trap in found)

    def test_no_torchvision_no_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Installed(monkeypatch, torch=("2.13.0", []))
        assert not list(doctor.find_torch_mismatch("torchvision"))

    @pytest.mark.parametrize(
        ("setuptools", "users", "levels"),
        [
            ("84.2.1", [], ["note"]),
            ("82.0.0", ["clip-anytorch"], ["trap"]),
            ("81.9", ["clip"], []),
            (None, [], []),
        ],
    )
    def test_pkg_resources(
        self, monkeypatch: pytest.MonkeyPatch, setuptools: str | None, users: list[str], levels: list[str]
    ) -> None:
        Installed(monkeypatch, **{name: ("1.0", []) for name in users})
        found = list(doctor.find_pkg_resources({"setuptools": setuptools}))
        assert [fault.level for fault in found] == levels
        assert all("setuptools<80" in fault.cure for fault in found)

    @pytest.mark.parametrize(
        ("for_cuda", "nvidia", "level"),
        [(True, False, "note"), (True, True, "trap"), (False, True, "trap"), (False, False, None)],
    )
    def test_the_wrong_build_of_torch(
        self, monkeypatch: pytest.MonkeyPatch, for_cuda: bool, nvidia: bool, level: str | None
    ) -> None:
        monkeypatch.setattr(doctor.machine, "has_nvidia", lambda: nvidia)
        section = {"CUDA devices": [], "built for CUDA": "13.0" if for_cuda else False}
        assert [fault.level for fault in doctor.find_torch_faults(section)] == ([level] if level else [])

    def test_too_many_threads_and_a_busy_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor.machine, "usable_cpus", lambda: 2)
        monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
        assert not list(doctor.find_thread_faults(2, None))
        (found,) = doctor.find_thread_faults(16, None)
        assert found.cure == "export OMP_NUM_THREADS=2"
        (found,) = doctor.find_thread_faults(2, "64")
        assert "64 threads" in found.what
        monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 0.5, 0.5))
        (found,) = doctor.find_thread_faults(2, None)
        assert "load 7.0 on 2 processors" in found.what

    def test_low_space(self) -> None:
        free = {"here (/a)": 0.2, "hub cache (/b)": 50.0, "shared memory (/dev/shm)": 0.06}
        here, shared = doctor.find_low_space(free)
        assert "/a" in here.what
        assert "bus error" in shared.what
        assert not list(doctor.find_low_space({"here (/a)": 1.5, "shared memory (/dev/shm)": 0.5}))

    def test_shipped_pipelines_are_checked_to_the_last_byte(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import hashlib

        folder = tmp_path / "tiny"
        folder.mkdir()
        (folder / "prior.safetensors").write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()
        roles = {"prior": {"file": "prior.safetensors", "sha256": digest, "config": {}}}
        (folder / "pipeline.json").write_text(json.dumps({"roles": roles}))
        monkeypatch.setattr(doctor, "shipped_pipelines", lambda: tmp_path)
        assert doctor._pipelines() == {"tiny": "intact, 1 files, 0.0 MB"}
        assert not list(doctor.find_pipeline_faults(doctor._pipelines()))
        (folder / "prior.safetensors").write_bytes(b"weighty")
        (found,) = doctor.find_pipeline_faults(doctor._pipelines())
        assert found.what == "the shipped pipeline tiny is damaged: prior.safetensors"
        (folder / "pipeline.json").write_text("{")
        (found,) = doctor.find_pipeline_faults(doctor._pipelines())
        assert "pipeline.json can't be read" in found.what

    def test_a_broken_core_is_status_1(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(doctor, "_torch", lambda: {"error": "ImportError: numpy"})
        assert main.main(["doctor"]) == 1
        out = capsys.readouterr().out
        assert "broken: torch can't be imported: ImportError: numpy" in out
        assert "cure: reinstall torch" in out
