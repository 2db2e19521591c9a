"""Pipelines on their way to a copy or to another process: the same pictures, and files in place of their weights."""

import copy
import multiprocessing
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from torch import Tensor, nn

import dalle_2
from dalle_2 import DALLe2

PROMPT = ["a red circle"]
Way = Callable[[Any], Any]


def by_pickle(given: Any) -> Any:
    return pickle.loads(pickle.dumps(given))


WAYS = {"pickle": by_pickle, "deepcopy": copy.deepcopy}


def drawn(pipeline: DALLe2) -> Tensor:
    return pipeline.generate(PROMPT, 2, seeds=[1])


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    home = tmp_path_factory.mktemp("karlo")
    karlo_rig.build(home)
    return home


def parts(pipeline: DALLe2) -> dict[str, nn.Module]:
    encoder: Any = pipeline.clip_encoder
    assert pipeline.prior is not None
    models = {"text": encoder.model.text, "prior": pipeline.prior, "decoder": pipeline.decoder}
    return models | {f"upsampler {n}": model for n, model in enumerate(pipeline.upsamplers)}


def carried(pipeline: DALLe2, data: bytes) -> set[str]:
    """The parts whose numbers are in a pickle."""
    numbers = {
        name: max((value for value in model.state_dict().values() if value.ndim == 2), key=Tensor.numel)
        for name, model in parts(pipeline).items()
    }
    return {name for name, value in numbers.items() if value.numpy().tobytes()[:256] in data}


@pytest.mark.parametrize(
    ("folder", "dtype", "low_memory", "way"),
    [
        ("micro_pipeline", "fp32", False, "pickle"), ("micro_pipeline", "fp32", True, "deepcopy"),
        ("karlo", "fp32", False, "pickle"), ("karlo", "bf16", True, "pickle"), ("karlo", "fp32", False, "deepcopy"),
    ],
)  # fmt: skip
def test_a_copy_draws_the_same(
    folder: str, dtype: str, low_memory: bool, way: Any, request: pytest.FixtureRequest
) -> None:
    """Of a pipeline as it was loaded, of one that has drawn, and of that copy."""
    home, way = request.getfixturevalue(folder), WAYS[way]
    pipeline = dalle_2.load(home, device="cpu", dtype=dtype, low_memory=low_memory)
    first = way(pipeline)
    wanted = drawn(pipeline)
    assert torch.equal(drawn(first), wanted)
    second = way(pipeline)
    assert torch.equal(drawn(second), wanted)
    assert torch.equal(drawn(way(second)), wanted)
    assert torch.equal(drawn(pipeline), wanted)
    assert (second.name, second.fingerprint, second.low_memory) == (pipeline.name, pipeline.fingerprint, low_memory)


@pytest.mark.parametrize("folder", ["micro_pipeline", "karlo"])
def test_weights_that_lie_in_files_stay_there(folder: str, request: pytest.FixtureRequest) -> None:
    pipeline = dalle_2.load(request.getfixturevalue(folder), device="cpu", dtype="fp32")
    drawn(pipeline)
    assert carried(pipeline, pickle.dumps(pipeline)) == set()


def test_weights_that_were_changed_go_along(micro_pipeline: Path) -> None:
    """However they were changed, and only they."""
    pipeline = dalle_2.load(micro_pipeline, device="cpu", dtype="fp32")
    before = drawn(pipeline)
    pipeline.decoder.network.conv_out.weight.data *= 2
    wanted = drawn(pipeline)
    assert not torch.equal(wanted, before)
    for way in WAYS.values():
        assert torch.equal(drawn(way(pipeline)), wanted)
    assert carried(pipeline, pickle.dumps(pipeline)) == {"decoder"}
    pipeline.decoder.half()
    kinds = [[value.dtype for value in one.decoder.parameters()] for one in (pipeline, by_pickle(pipeline))]
    assert kinds[0] == kinds[1]
    assert torch.float16 in kinds[0]


def test_weights_whose_files_have_gone_go_along(micro_pipeline: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(micro_pipeline, tmp_path / "copied"))
    pipeline = dalle_2.load(folder, device="cpu", dtype="fp32")
    wanted = drawn(pipeline)
    assert pipeline.upsamplers
    shutil.rmtree(folder)
    assert torch.equal(drawn(by_pickle(pipeline)), wanted)


def test_a_copy_s_weights_are_its_own(micro_pipeline: Path) -> None:
    pipeline = dalle_2.load(micro_pipeline, device="cpu", dtype="fp32")
    wanted = drawn(pipeline)
    other = copy.deepcopy(pipeline)
    for model in parts(other).values():
        for parameter in model.parameters():
            parameter.data.zero_()
    assert torch.equal(drawn(pipeline), wanted)


def test_a_shallow_copy_shares_the_parts(micro_pipeline: Path) -> None:
    pipeline = dalle_2.load(micro_pipeline, device="cpu", dtype="fp32")
    other = copy.copy(pipeline)
    assert other.decoder is not None
    assert copy.copy(other).decoder is other.decoder


@pytest.mark.parametrize("low_memory", [False, True])
def test_parts_by_themselves(karlo: Path, low_memory: bool) -> None:
    """Their weights go along, so that one may have them without a pipeline; in low memory there are none."""
    pipeline = dalle_2.load(karlo, device="cpu", dtype="fp32", low_memory=low_memory)
    wanted, words = drawn(pipeline), pipeline._encode_text(PROMPT)
    for way in WAYS.values():
        assert torch.equal(way(pipeline.clip_encoder).encode_text(PROMPT), words)
        models = [way(model) for model in (pipeline.prior, pipeline.decoder, pipeline.upsamplers[0])]
        assert all(weight.is_meta == low_memory for weight in models[1].parameters())
        made = DALLe2(
            *models[:2], pipeline.clip_encoder, upsampler_paths=models[2:], device="cpu", dtype="fp32",
            defaults=pipeline.defaults,
        )  # fmt: skip
        assert torch.equal(drawn(made), wanted)


def test_models_that_were_given_go_along(micro_pipeline: Path) -> None:
    read = dalle_2.load(micro_pipeline, device="cpu", dtype="fp32")
    given = copy.deepcopy(read.decoder)
    for parameter in given.parameters():
        parameter.data += 0.01
    pipeline = DALLe2(read.prior, given, read.clip_encoder, device="cpu", dtype="fp32")
    assert torch.equal(drawn(by_pickle(pipeline)), drawn(pipeline))


def test_what_makes_a_part_is_copied_as_it_is(micro_pipeline: Path) -> None:
    read = dalle_2.load(micro_pipeline, device="cpu", dtype="fp32")
    pipeline = DALLe2(lambda: read.prior, read.decoder, read.clip_encoder, device="cpu", dtype="fp32")  # type: ignore[arg-type, return-value]
    assert torch.equal(drawn(copy.deepcopy(pipeline)), drawn(pipeline))


def test_what_was_compiled_is_compiled_again(micro_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda call: compiled.append(call.__self__) or call)
    pipeline = dalle_2.load(micro_pipeline, device="cpu", dtype="fp32", compiled=True)
    assert pipeline.decoder
    other = copy.deepcopy(pipeline)
    assert compiled == [pipeline.decoder.network, other.decoder.network]


def test_it_is_handed_on_while_others_draw(karlo: Path) -> None:
    pipeline = dalle_2.load(karlo, device="cpu", dtype="fp32", low_memory=True)
    wanted = drawn(pipeline)
    drawing = threading.Thread(target=lambda: drawn(pipeline), daemon=True)
    drawing.start()
    copies = []
    while drawing.is_alive():
        copies.append(pickle.dumps(pipeline))
    assert torch.equal(drawn(pickle.loads(copies[len(copies) // 2])), wanted)


def in_a_process(pipeline: DALLe2, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(drawn(pipeline).tolist())


def test_another_process_draws_the_same(micro_pipeline: Path) -> None:
    pipeline = dalle_2.load(micro_pipeline, device="cpu", dtype="fp32")
    wanted = drawn(pipeline)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=in_a_process, args=(pipeline, answers))
    process.start()
    try:
        assert torch.equal(torch.tensor(answers.get(timeout=120)), wanted)
    finally:
        process.join()
    assert process.exitcode == 0
