"""Where weights lie: at multiples of 64 bytes in what is written here, and in memory whatever a file is like.

Where they lie decides how kernels sum, so that without this a folder and its copy draw other pictures.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dalle_2
from dalle_2 import DALLe2
from dalle_2.cli.main import main
from dalle_2.models.checkpoints import save_model, shelved
from dalle_2.weights import aligned, foreign, kept
from dalle_2.weights.aligned import ALIGNMENT
from dalle_2.weights.layout import Pair
from dalle_2.weights.safetensors_file import NAMES, write_safetensors

PROMPT = ["a red circle"]


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a file each tensor begins, and its size in bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    ends = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (8 + length + first, last - first) for name, (first, last) in ends.items()}


def lies_well(path: Path) -> bool:
    """Whether all tensors that fill lines begin with one, and few numbers are left for others."""
    full = [place for place, size in places(path).values() if size % ALIGNMENT == 0]
    return len(full) > 3 and not any(place % ALIGNMENT for place in full)


def moved(path: Path, by: int) -> None:
    """Writes a file anew by the format's own library, its data beginning `by` bytes behind a multiple of 64."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for filling in range(64):
        save_file(tensors, path, metadata={**metadata, "filling": " " * filling})
        if (first := min(place for place, _ in places(path).values())) % ALIGNMENT == by:
            return
    raise AssertionError(f"no header of that length: {first}")


def parts(pipeline: DALLe2) -> Iterator[tuple[str, Tensor]]:
    """All weights of a pipeline, read."""
    encoder: Any = pipeline.clip_encoder
    encoder.to("cpu")
    models = {"clip": encoder.model, "prior": pipeline.prior, "decoder": pipeline.decoder}
    for role, model in {**models, **{str(n): model for n, model in enumerate(pipeline.upsamplers)}}.items():
        yield from ((f"{role}.{name}", value) for name, value in model.state_dict().items() if value.numel())


def misplaced_in(pipeline: DALLe2) -> list[str]:
    return [name for name, value in parts(pipeline) if value.data_ptr() % ALIGNMENT]


def wide(micro_pipeline: Path, folder: Path) -> Path:
    """The folder in float32, in which weights are mapped rather than widened."""
    assert main(["models", "convert", str(micro_pipeline), str(folder)]) == 0
    return folder


def test_what_is_written_begins_at_multiples_of_64(micro_pipeline: Path, tmp_path: Path) -> None:
    files = sorted(wide(micro_pipeline, tmp_path / "wide").glob("*.safetensors"))
    assert len(files) == 4
    assert all(map(lies_well, files))


def test_the_format_s_own_library_reads_every_dtype_that_is_written(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = {
        f"{dtype}-{size}": torch.randint(0, 2, (size, 3), generator=generator).to(dtype)
        for dtype in NAMES for size in (0, 1, 5, 64)
    }  # fmt: skip
    wanted |= {"number": torch.tensor(3.5), "across": torch.randn(4, 6, generator=generator).T}
    write_safetensors(tmp_path / "a.safetensors", wanted, {"said": "é"})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tolist() == value.tolist(), name
    write_safetensors(tmp_path / "b.safetensors", dict(reversed(wanted.items())), {"said": "é"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(("by", "low_memory"), [(8, False), (56, False), (56, True)])
def test_a_folder_draws_the_same_wherever_its_weights_lie(
    micro_pipeline: Path, tmp_path: Path, by: int, low_memory: bool
) -> None:
    """As those of earlier releases: the header had any length."""
    wanted = dalle_2.load(micro_pipeline, device="cpu").generate(PROMPT, seeds=1)
    folder = wide(micro_pipeline, tmp_path / "wide")
    for path in folder.glob("*.safetensors"):
        moved(path, by)
    manifest = json.loads((folder / "pipeline.json").read_text())
    for part in manifest["parts"].values():
        part["sha256"] = ""
    (folder / "pipeline.json").write_text(json.dumps(manifest))
    pipeline = dalle_2.load(folder, device="cpu", low_memory=low_memory)
    assert torch.equal(pipeline.generate(PROMPT, seeds=1), wanted)
    assert low_memory or misplaced_in(pipeline) == []


def test_much_stays_mapped(tmp_path: Path, micro_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digits are not worth gigabytes of memory."""
    path = wide(micro_pipeline, tmp_path / "wide") / "decoder.safetensors"
    moved(path, 8)
    monkeypatch.setattr(aligned, "MOST_COPIED", 0)
    left = [value for value in shelved(path)().state_dict().values() if value.data_ptr() % ALIGNMENT]
    size = sum(value.nbytes for value in left)
    assert size
    for most, misplaced in ((size - 1, len(left)), (size, 0)):
        monkeypatch.setattr(aligned, "MOST_COPIED", most)
        values = shelved(path)().state_dict().values()
        assert len([value for value in values if value.data_ptr() % ALIGNMENT]) == misplaced


def test_a_single_model_lies_well_too(tmp_path: Path) -> None:
    from dalle_2 import Prior
    from dalle_2.models.prior import PriorConfig

    model = Prior.from_config(PriorConfig(dim=16, width=48, depth=1, heads=2))
    for suffix in ("safetensors", "pth"):
        path = tmp_path / f"prior.{suffix}"
        save_model(model, path)
        read = shelved(path)().state_dict()
        assert all(torch.equal(read[name], value) for name, value in model.state_dict().items())
        assert not any(value.data_ptr() % ALIGNMENT for value in read.values())
    assert lies_well(tmp_path / "prior.safetensors")


def test_foreign_weights_lie_well_where_they_are_filled_in(tmp_path: Path) -> None:
    layer = nn.Linear(8, 8)
    save_file({"tiny": torch.ones(1), "w": layer.weight.data, "b": layer.bias.data}, tmp_path / "x.safetensors")
    moved_by_four = {"w": torch.zeros(65)[1:].view(8, 8), "b": torch.zeros(9)[1:]}
    with torch.device("meta"):
        module = nn.Linear(8, 8)
    foreign.fill(module, [Pair("weight", ("w",)), Pair("bias", ("b",))], moved_by_four, "x")
    assert not any(value.data_ptr() % ALIGNMENT for value in module.state_dict().values())


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    home = tmp_path_factory.mktemp("karlo")
    karlo_rig.build(home)
    return home


@pytest.mark.parametrize(("dtype", "least"), [("fp32", kept.LEAST_BYTES), ("fp32", 0), ("bf16", 0)])
def test_karlo_s_weights_lie_well(
    karlo: Path, dtype: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that stay mapped, those of a copy that is kept, and those in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "LEAST_BYTES", least)
    assert misplaced_in(dalle_2.load(karlo, device="cpu", dtype=dtype)) == []
    assert all(lies_well(path) for path in tmp_path.rglob("decoder-*.safetensors"))


def test_karlo_and_its_conversions_draw_the_same(karlo: Path, tmp_path: Path) -> None:
    wanted = dalle_2.load(karlo, device="cpu", dtype="fp32").generate(PROMPT, 2, seeds=1)
    for layout in ("dalle2", "diffusers"):
        folder = tmp_path / layout
        assert main(["models", "convert", str(karlo), str(folder), "--to", layout]) == 0
        assert all(map(lies_well, folder.rglob("de*r*.safetensors")))
        assert torch.equal(dalle_2.load(folder, device="cpu", dtype="fp32").generate(PROMPT, 2, seeds=1), wanted)
