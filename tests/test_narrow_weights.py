"""Weights that a narrower dtype doesn't hold are kept, and said; files that claim more than they hold are refused."""

import io
import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dalle_2 import Prior, load, save, save_model
from dalle_2.errors import CheckpointError
from dalle_2.models.checkpoints import load_model
from dalle_2.models.prior import PriorConfig
from dalle_2.weights.checkpoint import check_tensors, load_checkpoint, read_tensors, save_checkpoint
from dalle_2.weights.narrowing import narrowed

BIGGEST = {torch.float16: 65504.0, torch.bfloat16: 3.3895313892515355e38}


def prior() -> Prior:
    return Prior.from_config(PriorConfig(dim=8, width=8, depth=1, heads=2))


@pytest.mark.parametrize("dtype", BIGGEST)
def test_a_tensor_with_a_number_beyond_the_dtype_keeps_its_numbers_and_is_named(tmp_path: Path, dtype: torch.dtype):
    last = torch.finfo(torch.float32).max if dtype == torch.bfloat16 else 1e6
    tensors = {"large": torch.tensor([1.0, -last]), "edge": torch.tensor([BIGGEST[dtype]]), "small": torch.ones(3)}
    with pytest.warns(UserWarning, match=r"keeps weights in float32 that b?float16 doesn't hold \(1\): large"):
        save_checkpoint(tmp_path / "part.safetensors", "prior", {}, tensors, dtype=dtype)
    stored = load_checkpoint(tmp_path / "part.safetensors").tensors
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "large": torch.float32, "edge": dtype, "small": dtype,
    }  # fmt: skip
    assert all(torch.equal(stored[name].float(), tensor) for name, tensor in tensors.items())


def test_numbers_of_double_precision_beyond_float32_keep_theirs():
    with pytest.warns(UserWarning, match="doesn't hold"):
        made = narrowed({"huge": torch.tensor([1e300], dtype=torch.float64)}, torch.float16, "part")
    assert made["huge"].dtype == torch.float64
    assert made["huge"].item() == 1e300


def test_a_tensor_that_would_be_all_zero_keeps_its_numbers():
    with pytest.warns(UserWarning, match=r"doesn't hold \(1\): faint"):
        made = narrowed({"faint": torch.tensor([1e-9, 0.0]), "none": torch.zeros(2)}, torch.float16, "part")
    assert made["faint"].dtype == torch.float32
    assert made["none"].dtype == torch.float16


def test_what_came_as_no_number_stays_so_and_is_said():
    came = {"odd": torch.tensor([float("nan"), float("inf"), 2.0])}
    with pytest.warns(UserWarning, match=r"not finite, as they came \(1\): odd"):
        made = narrowed(came, torch.float16, "part")
    assert made["odd"].dtype == torch.float16
    assert str(made["odd"].tolist()) == "[nan, inf, 2.0]"


def test_nothing_is_said_of_weights_as_they_should_be():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrowed({"w": torch.randn(8), "n": torch.tensor(3)}, torch.float16, "part")
        narrowed({"w": torch.tensor([1e30])}, None, "part")


def test_a_pipeline_with_such_a_weight_draws_with_it_after_it_was_written(micro_pipeline: Path, tmp_path: Path):
    pipeline = load(micro_pipeline, device="cpu")
    with torch.no_grad():
        pipeline.prior.network.embed_text.bias[0] = 1e6
    with pytest.warns(UserWarning, match=r"prior\.safetensors keeps weights in float32 .*network\.embed_text\.bias"):
        save(pipeline, tmp_path / "again", dtype=torch.float16)
    assert load(tmp_path / "again", device="cpu").prior.network.embed_text.bias[0] == 1e6


def pickled(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A weight file of a prior, with these in place of some of its tensors."""
    model = prior()
    content = {
        "dalle_2": {
            "format_version": 2, "kind": "prior", "config": model.config.model_dump(mode="json"), "provenance": {},
        },
        "tensors": {**model.state_dict(), **tensors},
    }  # fmt: skip
    torch.save(content, path)
    return path


NAME = "network.out.weight"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 1).expand(8, 8), "without numbers of their own"),
        (torch.zeros(8, 8).to_sparse(), "without numbers of their own"),
        (torch.zeros(8, 8, device="meta"), "without numbers of their own"),
        (torch.zeros(8, 8, dtype=torch.int64), f"of other numbers .*{NAME} is int64 instead of float32"),
        (torch.zeros(8, 8, dtype=torch.complex64), "of other numbers"),
    ],
)
def test_tensors_that_stand_for_no_weights_are_named(tmp_path: Path, given: Tensor, message: str):
    with pytest.raises(CheckpointError, match=message):
        load_model(pickled(tmp_path / "prior.pth", {NAME: given}))


def test_many_tensors_over_the_same_few_numbers_are_refused():
    module, shared = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(9))), torch.zeros(8, 8)
    with pytest.raises(CheckpointError, match="2,304 bytes where 256 are"):
        check_tensors(module, {f"{n}.weight": shared for n in range(9)}, "some file")
    check_tensors(module[:3], {f"{n}.weight": shared for n in range(3)}, "tied weights")


def test_settings_nested_beyond_reason_and_other_damage_are_said_in_a_sentence(tmp_path: Path):
    path = tmp_path / "prior.safetensors"
    save_model(prior(), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["dalle_2"] = "[" * 200_000
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data[8 + length :])
    with pytest.raises(CheckpointError, match="truncated, damaged"):
        load_model(path)


def test_names_that_are_no_names_are_left_out(tmp_path: Path):
    torch.save({1: torch.zeros(2), "a": torch.zeros(2), ("b", "c"): torch.zeros(2)}, tmp_path / "odd.pth")
    assert list(read_tensors(tmp_path / "odd.pth")) == ["a"]


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0"])
def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path, name: str):
    whole = pickled(tmp_path / "prior.pth", {}).read_bytes()
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            end = entry.partition("/")[2]
            new.writestr(entry, bytes(2**24) if end == name.partition("/")[2] else old.read(entry))
    assert bomb.stat().st_size < 2**17
    with pytest.raises(CheckpointError, match="unpacks to more than it holds"):
        load_model(bomb)
