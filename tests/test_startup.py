"""What a command loads before it works: not PyTorch's compiler, unless it was asked for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dalle_2.models.checkpoints import KINDS
from dalle_2.models.clip import CLIP, CLIPConfig
from dalle_2.models.clip_loading import load_clip
from dalle_2.models.rest import Shelved
from dalle_2.models.unfilled import empty

# Runs commands one after the other in one process, then builds every kind of model that a file may hold, and the layers
# of PyTorch's that fill themselves; prints the status of each, and whether the compiler is there by then.
CHILD = """
import contextlib, importlib, io, json, sys
from dalle_2.cli.main import main

found = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    found.append([words[0], status, "torch._dynamo" in sys.modules])

from torch import nn
from dalle_2.models.checkpoints import KINDS
from dalle_2.models.unfilled import empty

GLIDE = {"caption": {}, "unet": {"z_dim": 0, "context_tokens": 0, "text_dim": 160, "out_channels": 6}}
for kind, (home, model, settings) in KINDS.items():
    module = importlib.import_module(home)
    config = getattr(module, settings).model_validate(GLIDE if kind == "glide" else {})
    empty(lambda: getattr(module, model).from_config(config))
    found.append([kind, 0, "torch._dynamo" in sys.modules])
empty(lambda: nn.ModuleList([
    nn.Linear(2, 2), nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.Embedding(2, 2), nn.LayerNorm(2),
    nn.GroupNorm(1, 2), nn.BatchNorm2d(2), nn.MultiheadAttention(2, 1), nn.GRU(2, 2), nn.Bilinear(2, 2, 2), nn.PReLU(),
]))
found.append(["layers", 0, "torch._dynamo" in sys.modules])
print(json.dumps(found))
"""
DRAWING = [
    ["generate", "a red circle", "--n", "2", "--best-of", "2"],
    ["generate", "a red circle", "--sampler", "unipc", "--low-memory"],
    ["generate", "a red circle", "--dtype", "bf16", "--no-prior"],
    ["variations", "picture.png", "--n", "1"],
    ["interpolate", "picture.png", "mask.png", "--n", "2"],
    ["text-diff", "picture.png", "--from", "a red circle", "--to", "a blue circle", "--n", "1"],
    ["inpaint", "picture.png", "a red circle", "--mask", "mask.png", "--candidates", "2"],
    ["outpaint", "picture.png", "a red circle", "--right", "8"],
    ["image-to-image", "picture.png", "a red circle"],
    ["probe", "picture.png", "--write", "star", "--labels", "a star,a circle", "--n", "1"],
    ["rerank", "a red circle", "picture.png"],
    ["upscale", "picture.png"],
    ["evaluate", "--n", "1", "--splits", "a"],
]
TINY_TRAINING = [
    "embeddings=64", "clip.captions=200", "clip.run.images=8", "clip.run.batch=8", "prior.run.images=8",
    "prior.run.batch=8", "draft.run.images=8", "draft.run.batch=8", "decoder.run.images=4", "decoder.run.batch=4",
    "upsampler.run.images=2", "upsampler.run.batch=2",
]  # fmt: skip


# Not train --dry-run: the kernels without memory that it counts with are Python, which the compiler wraps.
def test_no_command_and_no_kind_of_model_loads_the_compiler(micro_pipeline: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(tmp_path / "picture.png")
    Image.fromarray(np.tri(32, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    changes = [word for change in TINY_TRAINING for word in ("--set", change)]
    commands = [
        *([*words, "--pipeline", str(micro_pipeline), "--device", "cpu"] for words in DRAWING),
        ["reconstruct", "picture.png", "--directions", "2", "--steps", "1"],  # which needs a pipeline that was trained
        ["train", "shapes-micro", "--lanes", "1", "--out", "trained", *changes],
        ["models"],
        ["doctor", "--json"],
    ]
    child = [sys.executable, "-c", CHILD, json.dumps(commands)]
    done = subprocess.run(child, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [*(words[0] for words in commands), *KINDS, "layers"]
    assert json.loads(done.stdout.splitlines()[-1]) == [[name, 0, False] for name in names]


class Constants(nn.Module):
    """A layer with weights, and with constants that are made by filling."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(2).mul_(5))
        self.register_buffer("table", torch.zeros(4, device="cpu").fill_(7.0), persistent=False)
        self.register_buffer("drawn", nn.init.constant_(torch.empty(2, device="cpu"), 3.0), persistent=False)


def test_an_empty_model_has_shapes_without_memory_and_constants_with_values() -> None:
    state = torch.random.get_rng_state()
    model = empty(Constants)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        "scale": (2,), "layer.weight": (2, 3), "layer.bias": (2,),
    }  # fmt: skip
    assert all(parameter.is_meta and parameter.requires_grad for parameter in model.parameters())
    constants = dict(model.named_buffers())
    assert constants["table"].tolist() == [7.0] * 4
    assert constants["drawn"].tolist() == [3.0] * 2


def test_what_is_built_empty_is_filled_with_all_that_it_had() -> None:
    tower = {"width": 16, "depth": 1, "heads": 2}
    values = {"vision": tower | {"image_size": 16, "patch": 8}, "text": tower | {"vocab_size": 300}, "embed_dim": 16}
    config = CLIPConfig.model_validate(values)
    whole = CLIP(config).eval()
    weights: dict[str, Tensor] = whole.state_dict()

    def given(_: Any) -> dict[str, Tensor]:
        return weights

    rebuilt = Shelved(lambda: empty(lambda: CLIP(config)), given)().eval()
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.encode_image(pictures), rebuilt.encode_image(pictures))  # type: ignore[operator]
    assert not [name for name, value in [*rebuilt.named_parameters(), *rebuilt.named_buffers()] if value.is_meta]


def test_a_clip_of_others_is_loaded_without_random_numbers(tmp_path: Path) -> None:
    from test_clip_encoding import hub_layout

    hub_layout(tmp_path)
    state = torch.random.get_rng_state()
    model = load_clip(tmp_path).model
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]


def test_outside_everything_is_filled() -> None:
    with torch.device("meta"):
        empty(lambda: nn.Linear(2, 2))
    assert nn.Linear(2, 2).weight.any()


def test_an_optimiser_without_the_decorator_is_pytorchs_own() -> None:
    from dalle_2.training.muon import Muon

    weight, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [weight]}], lr=0.1)
    weight.grad = torch.ones(2, 2)
    optimizer.zero_grad()
    assert weight.grad is None
    optimizer.add_param_group({"params": [other], "lr": 0.5})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [other]})
    saved = optimizer.state_dict()
    assert [group["lr"] for group in saved["param_groups"]] == [0.1, 0.5]
    saved["param_groups"][0]["lr"] = 0.25
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25
