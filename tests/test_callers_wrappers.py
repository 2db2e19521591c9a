"""Models inside of torch.compile, DataParallel or a wrapper of one's own: trained through it, stored without it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_rig import BATCH, MODELS, assert_same, assert_same_run, decoder, prior, trainer, weights

import dalle_2
from dalle_2 import DALLe2
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.clip_encoding import CLIPEncoder


class Counted(nn.Module):
    """A wrapper that knows of the forward pass alone, and counts it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *inputs: Any) -> Any:
        self.calls += 1
        return self.module(*inputs)


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "own": Counted,
    "both": lambda model: Counted(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrapper", ["parallel", "own", "both"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_wrapped_model_trains_as_the_bare_one(kind: str, wrapper: str, tmp_path: Path) -> None:
    bare = trainer(tmp_path / "bare", kind)
    run = trainer(tmp_path / "wrapped", kind, model=WRAPPERS[wrapper](MODELS[kind]()))
    for one in (bare, run):
        one.fit(3 * BATCH)
    assert_same_run(bare, run)
    assert type(run.model) is type(bare.model)


COMPILED = """
import sys, torch
sys.path.insert(0, "tests")
from training_rig import prior, trainer, user_batch

class Graphs:  # a backend that runs a graph as it is, and counts graphs and their calls
    graphs = calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*values):
            self.calls += 1
            return graph.forward(*values)

        return run

bare = trainer("runs/bare")
losses = [bare.train_step(user_batch("prior")) for _ in range(3)]
for way in ("whole", "in place", "network"):
    graphs, model = Graphs(), prior()
    if way == "network":
        model.network = torch.compile(model.network, backend=graphs)
    if way == "in place":
        model.compile(backend=graphs)
    run = trainer("runs/" + way, model=torch.compile(model, backend=graphs) if way == "whole" else model)
    kind, found = type(run.model), [run.train_step(user_batch("prior"))]
    made, calls = graphs.graphs, [graphs.calls]
    for _ in range(2):
        found.append(run.train_step(user_batch("prior")))
        calls.append(graphs.calls)
    assert graphs.graphs == made > 0, way  # compiled once,
    assert calls[2] - calls[1] == calls[1] - calls[0] > 0, way  # used always
    assert max(abs(a - b) for a, b in zip(found, losses)) < 1e-4, way
    assert type(run.model) is kind, way
    z = torch.zeros(2, 8)
    assert run.model(z, z, run.model.time(torch.tensor([0, 1]))).shape == (2, 8), way  # its forward is what it was
    run.save()
    assert trainer("runs/" + way).resume(), way
"""


def test_what_was_compiled_is_what_trains(tmp_path: Path) -> None:
    """In a process of its own: torch.compile can't trace the checks of shapes that every test run makes."""
    home = Path(__file__).parents[1]
    script = COMPILED.replace('"tests"', repr(str(home / "tests"))).replace('"runs/', f'"{tmp_path}/')
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(home)})


def test_a_wrapper_of_the_callers_own_is_called(tmp_path: Path) -> None:
    wrapper = Counted(prior())
    trainer(tmp_path, model=wrapper, accumulate=2).fit(3 * BATCH)
    assert wrapper.calls == 6


@pytest.mark.parametrize("before", ["bare", *WRAPPERS])
@pytest.mark.parametrize("after", ["bare", "compiled", "parallel"])
def test_a_run_goes_on_whatever_was_wrapped(before: str, after: str, tmp_path: Path) -> None:
    def wrapped(name: str) -> nn.Module:
        return prior() if name == "bare" else WRAPPERS[name](prior())

    run = trainer(tmp_path, model=wrapped(before))
    run.save()
    again = trainer(tmp_path, model=wrapped(after))
    with torch.no_grad():
        again.model.null_text += 1
    assert again.resume()
    assert_same(weights(again.model), weights(run.model))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_it_is_stored_without_its_wrapper(wrapper: str, suffix: str, tmp_path: Path) -> None:
    model, path = prior(), tmp_path / f"prior{suffix}"
    save_model(WRAPPERS[wrapper](model), path)
    assert_same(dict(load_model(path, "prior").state_dict()), weights(model))


def test_a_part_that_is_compiled_is_stored_and_goes_on_too(tmp_path: Path) -> None:
    model = prior()
    plain = weights(model)
    model.network = torch.compile(model.network, backend="eager")
    assert any("_orig_mod" in name for name in model.state_dict())
    save_model(model, tmp_path / "prior.pth")
    assert_same(dict(load_model(tmp_path / "prior.pth").state_dict()), plain)
    trainer(tmp_path / "run", model=model).save()
    assert trainer(tmp_path / "run", model=prior()).resume()
    back = prior()
    back.network = torch.compile(back.network, backend="eager")
    assert trainer(tmp_path / "run", model=back).resume()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_earlier_releases_wrote_of_wrapped_models_are_read(suffix: str, tmp_path: Path) -> None:
    from dalle_2.weights.checkpoint import Checkpoint, _header, _write_pickled, _write_safetensors

    model, path = prior(), tmp_path / f"prior{suffix}"
    tensors = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
    write = _write_pickled if suffix == ".pth" else _write_safetensors
    write(path, Checkpoint("prior", model.config.model_dump(mode="json"), tensors, {}))
    assert _header(Checkpoint("prior", {}, {}, {}))["format_version"] == 2
    assert_same(dict(load_model(path, "prior").state_dict()), weights(model))


def test_a_pipeline_of_wrapped_parts_is_saved(tmp_path: Path) -> None:
    parts = prior(), decoder()
    encoder = tiny_encoder()
    wrapped = [WRAPPERS[name](part) for name, part in zip(("compiled", "parallel"), parts, strict=True)]
    pipeline = DALLe2(*wrapped, encoder, device="cpu")
    dalle_2.save(pipeline, tmp_path / "saved", dtype=None)
    again = dalle_2.load(tmp_path / "saved", device="cpu")
    assert_same(dict(again.prior.state_dict()), weights(parts[0]))
    assert_same(dict(again.decoder.state_dict()), weights(parts[1]))


def tiny_encoder() -> CLIPEncoder:
    from dalle_2.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["a red circle", "a blue square"] * 4, 300, 6)
    text = {"width": 16, "depth": 1, "heads": 2, "vocab_size": tokenizer.vocab_size, "context_length": 6}
    text |= {"pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
    return CLIPEncoder(MODELS["clip"](text=text, phrases=0, thumbnail=0), tokenizer=tokenizer, device="cpu")


def test_tensors_alone_of_a_wrapped_model_are_read(tmp_path: Path) -> None:
    model = MODELS["prior"](T=1000, width=512, heads=8)
    save_file({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "prior.safetensors")
    with pytest.warns(UserWarning, match="holds weights without settings and is taken for a prior of the default ones"):
        assert_same(dict(load_model(tmp_path / "prior.safetensors").state_dict()), weights(model))
