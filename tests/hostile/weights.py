"""Weight files of ours and of others, damaged and made up: what `load_model` and its kin make of them."""

import io
import json
import struct
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from dalle_2.models.checkpoints import load_model, save_model, shelved
from dalle_2.models.dvae import DVAEConfig
from dalle_2.pipelines.dvae import load_dvae
from hostile.harness import Case
from hostile.mutation import as_json, changed, damaged, packed, with_damaged_pickle, with_evil

TOWER = {"width": 8, "depth": 1, "heads": 2}
TEXT = {**TOWER, "vocab_size": 40, "context_length": 8}
UNET: dict[str, Any] = {
    "channels": 8, "multiples": [1, 2], "blocks": 1, "attention": [1], "head_channels": 8, "z_dim": 8, "t_dim": 8,
}  # fmt: skip
CAPTIONED = UNET | {"text_dim": 8, "z_dim": 0, "context_tokens": 0, "context_dim": 8, "out_channels": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "clip": {"text": TEXT, "vision": {**TOWER, "image_size": 16, "patch": 8}, "embed_dim": 8, "phrases": 4},
    "prior": {"dim": 8, "width": 8, "depth": 1, "heads": 2, "T": 10, "caption": TEXT},
    "autoregressive_prior": {"dim": 8, "width": 8, "depth": 1, "heads": 2, "buckets": 8, "waves": 2},
    "draft": {"image_size": 16, "z_dim": 8, "width": 8, "depth": 1, "channels": 4},
    "decoder": {"image_size": 16, "unet": UNET},
    "upsampler": {
        "image_size": 32, "low_res_size": 16, "unet": UNET | {"low_res_channels": 3, "z_dim": 0, "context_tokens": 0},
    },
    "glide": {"image_size": 16, "unet": CAPTIONED, "caption": TEXT},
    "dvae": {"width": 8, "groups": 2, "blocks": 1, "start": 4, "codes": 8},
}  # fmt: skip


@cache
def stored(kind: str, suffix: str) -> bytes:
    """The file of a tiny model."""
    import importlib

    from dalle_2.config import parse
    from dalle_2.models.checkpoints import KINDS

    home = importlib.import_module(KINDS[kind].module)
    torch.manual_seed(0)
    model = getattr(home, KINDS[kind].model).from_config(parse(getattr(home, KINDS[kind].settings), SETTINGS[kind]))
    path = Path(f"base-{kind}{suffix}")
    save_model(model, path)
    return path.read_bytes()


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: bytes, rest: bytes) -> bytes:
    """A safetensors file of both."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + rest


def settings(random: Random, folder: Path) -> Path:
    """A sound file whose settings are not."""
    header, rest = header_of(stored(random.choice(list(SETTINGS)), ".safetensors"))
    own = changed(random, json.loads(header["__metadata__"]["dalle_2"]))
    header["__metadata__"]["dalle_2"] = as_json(random, own).decode("utf-8", "replace")
    return _written(folder / "part.safetensors", with_header(json.dumps(header).encode(), rest))


def layout(random: Random, folder: Path) -> Path:
    """A file whose header says otherwise where its tensors lie and what they are, or any damage."""
    data = stored(random.choice(list(SETTINGS)), ".safetensors")
    if random.random() < 0.5:
        return _written(folder / "part.safetensors", damaged(random, data))
    header, rest = header_of(data)
    return _written(folder / "part.safetensors", with_header(as_json(random, changed(random, header)), rest))


def pickled(random: Random, folder: Path) -> Path:
    """torch.save's form of the same."""
    kind = random.choice(list(SETTINGS))
    data, path = stored(kind, ".pth"), folder / random.choice(["part.pth", "part.pt", "part.bin"])
    way = random.random()
    if way < 0.25:
        return _written(path, with_evil(data, random, folder))
    if way < 0.5:
        return _written(path, with_damaged_pickle(data, random))
    if way < 0.75:
        return _written(path, damaged(random, data))
    if way < 0.76:
        return _written(path, packed(data, random))
    content = torch.load(io.BytesIO(data), weights_only=True)
    content["dalle_2"] = changed(random, content["dalle_2"])
    content["tensors"] = _other_tensors(random, content["tensors"])
    _saved(content, path, random)
    return path


def unlabelled(random: Random, folder: Path) -> Path:
    """A state dict, alone or in a trainer's state, with and without settings."""
    kind = random.choice(["prior", "decoder", "clip", "draft", "autoregressive_prior"])
    content = torch.load(io.BytesIO(stored(kind, ".pth")), weights_only=True)
    tensors: Any = _other_tensors(random, content["tensors"]) if random.random() < 0.5 else content["tensors"]
    held = changed(random, content["dalle_2"]["config"])
    made = random.choice(
        [
            tensors,
            {"state_dict": tensors, "config": held},
            {"model": {"ema": tensors}, "hyper_parameters": held, "kind": random.choice([kind, "glide", "x", 3])},
            OrderedDict({f"module.model.{name}": value for name, value in tensors.items()}),
            {"model": tensors, "settings": random.choice([held, [], {1: 2}, {"unet": 3}, {"T": 10**9}])},
            {"tensors": tensors, "dalle_2": random.choice([None, [], {"kind": kind}, changed(random, held)])},
            [tensors],
        ]
    )
    path = folder / "weights.pth"
    _saved(made, path, random)
    if random.random() < 0.3:
        path.write_bytes(damaged(random, path.read_bytes()))
    return path


def _other_tensors(random: Random, tensors: dict[str, Any]) -> dict[Any, Any]:
    """Some of them gone, of another shape, of another dtype, no numbers of their own, or under odd names."""
    made: dict[Any, Any] = dict(tensors)
    for _ in range(random.choice([0, 1, 1, 3])):
        name = random.choice(list(made))
        value = made.pop(name)
        shape = value.shape if isinstance(value, torch.Tensor) else (2,)
        ways = [
            lambda shape=shape: torch.zeros(1).expand(10**6, 10**6),
            lambda shape=shape: torch.zeros(()).expand(shape),
            lambda shape=shape: torch.zeros(shape, dtype=torch.int64),
            lambda shape=shape: torch.zeros(shape, dtype=torch.complex64),
            lambda shape=shape: torch.zeros(shape, dtype=torch.float8_e4m3fn),
            lambda shape=shape: torch.zeros(shape).to_sparse(),
            lambda shape=shape: torch.zeros(shape, device="meta"),
            lambda shape=shape: nn.Parameter(torch.full(shape, float("nan"))),
            lambda shape=shape: torch.zeros(0),
            lambda shape=shape: 3.5,
            lambda shape=shape: "text",
            lambda shape=shape: [torch.zeros(shape)],
        ]
        made[random.choice([name, name, name, 5, None, f"{name}." * 400, "\0", ("a", 1)])] = random.choice(ways)()
    return made


def _saved(content: Any, path: Path, random: Random) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=random.random() < 0.7)


def read_own(path: Path) -> None:
    """In memory, or as a pipeline plans with it, and then with its weights."""
    if int(path.parent.name) % 2:
        load_model(path)
    else:
        shelved(path)()


# OpenAI's dVAE

TINY = DVAEConfig(width=8, groups=2, blocks=1, start=4, codes=8)


class Layer(nn.Module):
    """Stands for any class of the published files."""

    def __init__(self, before: int = 0, after: int = 0, kernel: int = 1) -> None:
        super().__init__()
        if after:
            self.w = nn.Parameter(torch.zeros(after, before, kernel, kernel), False)
            self.b = nn.Parameter(torch.zeros(after), False)


def _network(part: str) -> nn.Module:
    encodes = part == "encoder"
    widths, kernels = ([8, 16], (3, 3, 3, 1)) if encodes else ([16, 8], (1, 3, 3, 3))
    width = 8 if encodes else 4
    names = {"input": Layer(3, width, 7) if encodes else Layer(8, width, 1)}
    for n, after in enumerate(widths):
        inner = [width, *[after // 4] * 3, after]
        path = {f"conv_{k + 1}": Layer(inner[k], inner[k + 1], kernels[k]) for k in range(4)}
        block = Layer()
        block.add_module("res_path", nn.Sequential(OrderedDict(path)))
        if width != after:
            block.add_module("id_path", Layer(width, after, 1))
        names[f"group_{n + 1}"] = nn.Sequential(OrderedDict(block_1=block))
        width = after
    out = Layer(width, 8 if encodes else 6, 1)
    names["output"] = nn.Sequential(OrderedDict(conv=out))
    top = Layer()
    top.add_module("blocks", nn.Sequential(OrderedDict(names)))
    return top


@cache
def dvae_file(part: str, archive: bool) -> bytes:
    """A published file, tiny: its classes are said to be those of OpenAI's package."""
    made = io.BytesIO()
    Layer.__module__, own = "dall_e.layers", Layer.__module__
    there = dict.fromkeys(("dall_e", "dall_e.layers"), sys.modules[own])
    sys.modules.update(there)
    try:
        torch.save(_network(part), made, _use_new_zipfile_serialization=archive)
    finally:
        Layer.__module__ = own
        for name in there:
            del sys.modules[name]
    return made.getvalue()


def dvae(random: Random, folder: Path) -> Path:
    """Both files, one of them damaged."""
    archive = random.random() < 0.6
    files = {part: dvae_file(part, archive) for part in ("encoder", "decoder")}
    part = random.choice(list(files))
    ways = (
        [_pickle_damage, _pickle_damage, _any_damage, with_evil] if archive else [_any_damage, _any_damage, with_evil]
    )
    if archive and random.random() < 0.01:
        files[part] = packed(files[part], random)
    else:
        way = random.choice(ways)
        files[part] = way(files[part], random, folder) if archive or way is not with_evil else _evil_row(random, folder)
    for name, data in files.items():
        (folder / f"{name}.pkl").write_bytes(data)
    return folder


def _pickle_damage(data: bytes, random: Random, folder: Path) -> bytes:
    return with_damaged_pickle(data, random)


def _any_damage(data: bytes, random: Random, folder: Path) -> bytes:
    return damaged(random, data)


def _evil_row(random: Random, folder: Path) -> bytes:
    from hostile.mutation import evil_code

    return dvae_file("encoder", False)[:60] + evil_code(random, folder)


def read_dvae(folder: Path) -> None:
    load_dvae(folder, device="cpu", config=TINY)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@cache
def sound_files() -> None:
    """Every kind is made once and read once."""
    for kind in SETTINGS:
        for suffix in (".safetensors", ".pth"):
            stored(kind, suffix)
            load_model(Path(f"base-{kind}{suffix}"))
            shelved(Path(f"base-{kind}{suffix}"))()


def sound_dvae() -> None:
    """Both forms are made once and read once."""
    folder = Path("sound-dvae")
    folder.mkdir(exist_ok=True)
    for archive in (True, False):
        for part in ("encoder", "decoder"):
            (folder / f"{part}.pkl").write_bytes(dvae_file(part, archive))
        read_dvae(folder)


CASES = {
    "settings in our weight files": Case(settings, read_own, warm=sound_files),
    "our weight files": Case(layout, read_own, warm=sound_files),
    "our weight files of torch.save": Case(pickled, read_own, warm=sound_files),
    "state dicts and trainers' states": Case(unlabelled, read_own, warm=sound_files),
    "OpenAI's dVAE": Case(dvae, read_dvae, warm=sound_dvae),
}
