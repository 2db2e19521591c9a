"""`dalle2 doctor`: examine this machine and its packages, and name known traps with their cure.

It runs where torch is missing or broken, and never imports torchvision, as a mismatched one breaks the
process that imports it.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dalle_2 import machine, threads
from dalle_2.cached import cached_clip
from dalle_2.errors import CheckpointError
from dalle_2.json_file import read_object
from dalle_2.paths import NO_HOME, homeless, hub_cache, shipped_pipelines
from dalle_2.published import DEFAULT_CLIP

OPTIONAL = (
    "torchvision",
    "torchaudio",
    "open_clip_torch",
    "transformers",
    "diffusers",
    "tensorboard",
    "setuptools",
)
NEEDS_PKG_RESOURCES = ("clip", "clip-anytorch", "openai-clip", "dalle2-pytorch")

_GIGABYTE = 2**30

Section = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """broken: the core won't run; trap: something will go wrong or slow; note: good to know."""

    level: Literal["broken", "trap", "note"]
    what: str
    cure: str


@dataclass
class Report:
    sections: dict[str, Section] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Examine this machine and its packages, and name known traps with their cure.

    The exit status is 1 if the core can't run here.
    """
    report = examine()
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else as_text(report))
    if any(finding.level == "broken" for finding in report.findings):
        raise typer.Exit(1)


def examine() -> Report:
    """Everything the doctor can say about this machine. Imports torch if it is there."""
    versions, torch, disk = _versions(), _torch(), _disk()
    sections = {
        "environment": _environment(),
        "packages": versions,
        "processor": _processor(),
        "torch": torch,
        "caches": _caches(),
        "free disk (GiB)": disk,
        "shipped pipelines": _pipelines(),
    }
    findings = [
        *find_missing(),
        *find_torch_faults(torch),
        *find_torch_mismatch("torchvision"),
        *find_torch_mismatch("torchaudio"),
        *find_pkg_resources(versions),
        *find_thread_faults(torch.get("threads"), os.environ.get("OMP_NUM_THREADS")),
        *find_spinning(os.environ),
        *find_low_space(disk),
        *find_no_home(),
        *find_pipeline_faults(sections["shipped pipelines"]),
    ]
    return Report(sections, findings)


def as_text(report: Report) -> str:
    """The report for people: sections, then findings."""
    blocks = [_block(title, section) for title, section in report.sections.items()]
    findings = [f"{found.level}: {found.what}\n  cure: {found.cure}" for found in report.findings]
    return "\n\n".join([*blocks, "\n".join(findings) or "No known trap found."])


def _block(title: str, section: Section) -> str:
    width = max(map(len, section), default=0)
    lines = [f"  {key:<{width}}  {_plain(value)}" for key, value in section.items()]
    return "\n".join([title, *(lines or ["  none"])])


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "not installed"
    if isinstance(value, bool):  # 1 equals True, and is a number here
        return "yes" if value else "no"
    return str(value)


# What is there


def _environment() -> Section:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "virtual environment": sys.prefix != sys.base_prefix,
        "system": platform.platform(),
        **{name: os.environ[name] for name in names if name in os.environ},
        "idle threads": _waiting(threads.chosen(os.environ)),
    }


def _waiting(chosen: Mapping[str, str]) -> str:
    """How they wait, and who said so."""
    words = ", ".join(f"{name}={value}" for name, value in chosen.items())
    if chosen == threads.WAITING:
        return f"asleep ({words}, as every command sets it)"
    return f"by your setting ({words})" if chosen else "spinning for a while (nothing is set)"


def _versions() -> Section:
    names = ["dalle_2", *(name for name, _ in _core_requirements()), *OPTIONAL]
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _core_requirements() -> Iterator[tuple[str, str]]:
    """(name, lower bound) of each package that the core needs, by the package's own declaration."""
    for line in _requires("dalle_2"):
        found = re.match(r"([\w.-]+)[^;]*?>=([\d.]+)", line)
        if found and "extra ==" not in line:
            yield found[1], found[2]


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _processor() -> Section:
    return {
        "name": machine.cpu_name(),
        "instructions": machine.cpu_flags(),
        "usable processors": machine.usable_cpus(),
        "default dtype": machine.default_dtype("cpu"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "unknown",
    }


def _torch() -> Section:
    if importlib.util.find_spec("torch") is None:
        return {}
    try:
        return _describe_torch(importlib.import_module("torch"))
    except Exception as error:  # a missing system library, a mismatched NumPy, ...
        return {"error": f"{type(error).__name__}: {error}"}


def _describe_torch(torch: Any) -> Section:
    cuda = torch.cuda.is_available()
    return {
        "version": torch.__version__,
        "built for CUDA": torch.version.cuda or False,
        "CUDA devices": [_describe_cuda(torch, k) for k in range(torch.cuda.device_count())] if cuda else [],
        "Apple GPU": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "OpenMP": _openmp(Path(torch.__file__).parent / "lib"),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _openmp(folder: Path) -> list[str]:
    """The files of the OpenMP that torch brings along: GNU's libgomp, LLVM's libomp, Intel's libiomp."""
    return sorted(path.name for path in folder.glob("lib*omp*") if re.match(r"lib[gi]?omp", path.name))


def _describe_cuda(torch: Any, k: int) -> str:
    about = torch.cuda.get_device_properties(k)
    dtype = machine.default_dtype("cuda", capability=(about.major, about.minor))
    return f"{about.name} ({about.total_memory / _GIGABYTE:.0f} GiB, default dtype {dtype})"


def _caches() -> Section:
    cache = hub_cache()
    models = [
        path.name.removeprefix("models--").replace("--", "/") for path in sorted(cache.glob("models--*"))
    ]
    return {
        "hub": str(cache),
        "hub models": models,
        f"CLIPEncoder() works offline ({DEFAULT_CLIP})": _clip_is_here(),
    }


def _clip_is_here() -> bool:
    try:
        return cached_clip(DEFAULT_CLIP) is not None
    except CheckpointError:  # an index of weights that can't be read
        return False


def _disk() -> Section:
    places = {"here": Path.cwd(), "hub cache": hub_cache(), "temporary files": Path(tempfile.gettempdir())}
    sizes = {f"{name} ({path})": _free_gigabytes(path) for name, path in places.items()}
    shared = Path("/dev/shm")
    if shared.is_dir():
        sizes[f"shared memory ({shared})"] = _free_gigabytes(shared)
    return sizes


def _free_gigabytes(path: Path) -> float:
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return round(shutil.disk_usage(existing).free / _GIGABYTE, 2)


def _pipelines() -> Section:
    return {
        path.parent.name: _pipeline(path.parent)
        for path in sorted(shipped_pipelines().glob("*/pipeline.json"))
    }


def _pipeline(folder: Path) -> str:
    try:
        files = list(_files(read_object(folder / "pipeline.json", "it is gone")))
    except CheckpointError as error:
        return f"damaged: {error}"
    wrong = [name for name, digest in files if not _intact(folder / name, digest)]
    if wrong:
        return f"damaged: {', '.join(wrong)}"
    size = sum((folder / name).stat().st_size for name, _ in files)
    return f"intact, {len(files)} files, {size / 1e6:.1f} MB"


def _files(node: Any) -> Iterator[tuple[str, str | None]]:
    """Every {"file": ..., "sha256": ...} of a pipeline.json, wherever it stands."""
    if isinstance(node, dict):
        if isinstance(node.get("file"), str):
            yield node["file"], node.get("sha256")
        for value in node.values():
            yield from _files(value)
    elif isinstance(node, list):
        for value in node:
            yield from _files(value)


def _intact(path: Path, digest: str | None) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return not digest or hashlib.file_digest(stream, "sha256").hexdigest() == digest


# What may go wrong


def find_missing() -> Iterator[Finding]:
    """Core packages that are missing or too old."""
    for name, least in _core_requirements():
        version = _version(name)
        if version is None:
            yield Finding("broken", f"{name} is not installed", f"pip install '{name}>={least}'")
        elif _numbers(version) < _numbers(least):
            yield Finding(
                "broken", f"{name} is {version}, at least {least} is needed", f"pip install -U {name}"
            )


def find_torch_faults(torch: Section) -> Iterator[Finding]:
    """A torch that can't be imported, or that is built for other hardware than there is."""
    if "error" in torch:
        yield Finding(
            "broken", f"torch can't be imported: {torch['error']}", "reinstall torch in a new environment"
        )
    elif torch and not torch["CUDA devices"]:
        yield from _find_wrong_build(bool(torch["built for CUDA"]), machine.has_nvidia())


def _find_wrong_build(for_cuda: bool, nvidia: bool) -> Iterator[Finding]:
    if for_cuda and nvidia:
        yield Finding(
            "trap",
            "there is an NVIDIA device, but torch can't use it",
            "update the NVIDIA driver or install a torch built for an older CUDA; check CUDA_VISIBLE_DEVICES",
        )
    elif for_cuda:
        yield Finding(
            "note",
            "torch is built for CUDA, but there is no NVIDIA device: it works, but wastes gigabytes",
            "install PyTorch's CPU build instead",
        )
    elif nvidia:
        yield Finding(
            "trap",
            "there is an NVIDIA device, but torch is built for the processor only",
            "install PyTorch's CUDA build",
        )


def find_torch_mismatch(package: str) -> Iterator[Finding]:
    """A torchvision (or the like) made for another torch; it breaks whatever imports it."""
    version, torch = _version(package), _version("torch")
    pins = [
        found[1] for line in _requires(package) if (found := re.match(r"torch\s*\(?==\s*([\w.+]+)", line))
    ]
    if version is None or torch is None or not pins:
        return
    if _release(pins[0]) != _release(torch):
        what = f"{package} {version} is made for torch {pins[0]}, but torch is {torch}"
    elif _build(version) != _build(torch):
        what = f"{package} {version} and torch {torch} are builds for different hardware"
    else:
        return
    cure = f"pip uninstall {package} (dalle_2 doesn't need it), or install the release that goes with torch"
    yield Finding("trap", f"{what}; importing it fails", cure)


def find_pkg_resources(versions: Section) -> Iterator[Finding]:
    """setuptools 82 dropped pkg_resources, which some older packages of the field import."""
    setuptools = versions.get("setuptools")
    if setuptools is None or _numbers(setuptools) < (82,):
        return
    users = [name for name in NEEDS_PKG_RESOURCES if _version(name)]
    names = ", ".join(users or NEEDS_PKG_RESOURCES)
    what = f"setuptools {setuptools} has no pkg_resources, which {names} may import"
    yield Finding(
        "trap" if users else "note", what, "where such a package is used, pip install 'setuptools<80'"
    )


def find_thread_faults(threads: int | None, omp: str | None) -> Iterator[Finding]:
    """More threads than processors: they wait for each other, and a step can take ten times as long."""
    usable = machine.usable_cpus()
    wanted = int(omp) if omp and omp.isdigit() else threads or 0
    if wanted > usable:
        what = f"torch starts {wanted} threads, but this process may use {usable} processors"
        yield Finding("trap", what, f"export OMP_NUM_THREADS={usable}")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > usable + 0.5:
        what = f"the machine is busy (load {os.getloadavg()[0]:.1f} on {usable} processors)"
        yield Finding(
            "note", what, "end the other work before training or measuring: sharing costs more than half"
        )


def find_spinning(environment: Mapping[str, str]) -> Iterator[Finding]:
    """A setting that keeps idle threads busy."""
    for name in threads.spinning(environment):
        what = f"{name}={environment[name]} has idle threads spin: beside other work a step takes ten times as long"
        yield Finding("trap", what, f"unset {name}: commands then have them sleep")


def find_low_space(disk: Section) -> Iterator[Finding]:
    """Less than a gigabyte free, or shared memory as small as a container's default."""
    for place, gigabytes in disk.items():
        what = f"{place}: {gigabytes} GiB free"
        if place.startswith("shared memory"):
            if gigabytes < 0.25:
                cure = "give the container more (docker run --shm-size 2g), or load data without workers"
                yield Finding("trap", f"{what}; data loading workers may die with a bus error", cure)
        elif gigabytes < 1:
            yield Finding("trap", what, "free some space, or write elsewhere")


def find_no_home() -> Iterator[Finding]:
    """A user of whom the system knows no home folder, as containers start processes."""
    if homeless():
        yield Finding(
            "trap", f"downloads are kept in a home folder, and {NO_HOME}",
            "set HOME to a folder that may be written, or HF_HOME and XDG_CACHE_HOME",
        )  # fmt: skip


def find_pipeline_faults(pipelines: Section) -> Iterator[Finding]:
    """Shipped pipelines that are missing or damaged."""
    if not pipelines:
        yield Finding(
            "trap",
            "no pipeline came with the package",
            "reinstall it, or train one: dalle2 train shapes-micro",
        )
    for name, state in pipelines.items():
        if state.startswith("damaged"):
            yield Finding("trap", f"the shipped pipeline {name} is {state}", "reinstall the package")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", _release(version))[:3]))


def _release(version: str) -> str:
    return version.partition("+")[0]


def _build(version: str) -> str:
    return version.partition("+")[2]
