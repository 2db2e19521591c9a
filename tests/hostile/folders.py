"""Folders of pipelines, of CLIP, Karlo and GLIDE, and what lies in them besides weights.

A tiny sound folder of each is made once; for each input its files are linked, and one of them is damaged.
"""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import glide_rig
import karlo_rig
import torch

from dalle_2 import CLIPEncoder, load
from dalle_2.models.clip_loading import load_clip
from dalle_2.models.placement import Placement
from dalle_2.pipelines.find import known_pipelines, locate
from dalle_2.pipelines.karlo import KarloParts
from dalle_2.pipelines.manifest import read_manifest
from dalle_2.pipelines.seen import read_seen
from dalle_2.text.glide_tokenizer import GlideTokenizer
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.weights.checkpoint import read_tensors
from hostile.harness import Case
from hostile.mutation import as_json, changed, damaged
from hostile.weights import SETTINGS, header_of, with_header

PROMPT = "a red circle above a blue square, don't"


def linked(base: Path, folder: Path) -> Path:
    """The same files without a copy of them."""
    shutil.copytree(base, folder, dirs_exist_ok=True, copy_function=os.link)
    return folder


def spoilt(random: Random, path: Path) -> None:
    """Another file in its place: of the same values with some changed where it is JSON, and of damaged bytes."""
    data = path.read_bytes()
    path.unlink()
    if path.suffix == ".json" and random.random() < 0.8:
        path.write_bytes(as_json(random, changed(random, json.loads(data))))
    elif path.suffix == ".safetensors" and random.random() < 0.5:
        header, rest = header_of(data)
        path.write_bytes(with_header(as_json(random, changed(random, header)), rest))
    elif path.suffix == ".gz" and random.random() < 0.5:
        path.write_bytes(_packed(random, gzip.decompress(data)))
    else:
        path.write_bytes(damaged(random, data))


def _packed(random: Random, data: bytes) -> bytes:
    if random.random() < 0.02:
        return gzip.compress(bytes(2**28), 1)
    if data.startswith(b"{") and random.random() < 0.8:
        return gzip.compress(as_json(random, changed(random, json.loads(data))))
    return gzip.compress(damaged(random, data))


def one_of(base: Callable[[], Path], *patterns: str) -> Callable[[Random, Path], Path]:
    """Folders like the base with one of the files spoilt that fit the patterns."""

    def make(random: Random, folder: Path) -> Path:
        linked(base(), folder)
        files = sorted(path for pattern in patterns for path in folder.glob(pattern))
        spoilt(random, random.choice(files))
        return folder

    return make


# Sound folders


@cache
def micro() -> Path:
    """A pipeline of ours, whose weight files nobody has sums of."""
    from dalle_2 import CLIP, DALLe2, Decoder, Prior, save
    from dalle_2.models.clip import CLIPConfig
    from dalle_2.models.decoder import DecoderConfig
    from dalle_2.models.prior import PriorConfig

    torch.manual_seed(0)
    tokenizer = Tokenizer.train([PROMPT] * 3, 290, 48)
    values = SETTINGS["clip"] | {"text": SETTINGS["clip"]["text"] | {"vocab_size": 300, "context_length": 48}}
    clip = CLIP.from_config(CLIPConfig.model_validate(values)).eval()
    parts = (
        Prior.from_config(PriorConfig.model_validate({**SETTINGS["prior"], "caption": None, "steps": 3})),
        Decoder.from_config(DecoderConfig.model_validate({**SETTINGS["decoder"], "steps": 3})),
    )
    pipeline = DALLe2(*parts, CLIPEncoder(clip, tokenizer=tokenizer), device="cpu")
    folder = save(pipeline, Path("micro").resolve(), training={"minutes": 1})
    manifest = json.loads((folder / "pipeline.json").read_text())
    for part in manifest["parts"].values():
        part.pop("sha256")
    (folder / "pipeline.json").write_text(json.dumps(manifest))
    (folder / "seen-pictures.txt").write_text("# digests\n0123456789abcdef\n")
    (folder / "run").mkdir()
    (folder / "run" / "stages.json").write_text(json.dumps({"stages": ["clip", "prior"]}))
    return folder


@cache
def karlo() -> Path:
    """A Karlo in the layout of diffusers."""
    folder = Path("karlo").resolve()
    if not (folder / "model_index.json").exists():
        karlo_rig.build(folder)
    return folder


@cache
def clip() -> Path:
    """A CLIP in the Hugging Face layout."""
    folder, own = Path("clip").resolve(), karlo()
    folder.mkdir(exist_ok=True)
    tensors = read_tensors(own / "text_encoder" / "model.safetensors")
    tensors |= read_tensors(own / "image_encoder" / "model.safetensors") | {"logit_scale": torch.tensor(3.0)}
    from safetensors.torch import save_file

    save_file(dict(tensors), folder / "model.safetensors")
    torch.save(dict(tensors), folder / "pytorch_model.bin")
    sections = {
        f"{name}_config": json.loads((own / part / "config.json").read_text())
        for name, part in (("text", "text_encoder"), ("vision", "image_encoder"))
    }
    dim = sections["text_config"]["projection_dim"]
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": dim, **sections}))
    means = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(means))
    for file in (own / "tokenizer").iterdir():
        shutil.copy(file, folder / file.name)
    return folder


@cache
def slow_clip() -> Path:
    """Its vocabulary in the older form."""
    folder = linked(clip(), Path("slow-clip").resolve())
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n! !</w>\n")
    return folder


@cache
def sharded_clip() -> Path:
    """Its weights in the pickled form, in a file that an index names."""
    folder = linked(clip(), Path("sharded-clip").resolve())
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-1.bin")
    names = read_tensors(folder / "pytorch_model-1.bin")
    index = {"weight_map": dict.fromkeys(names, "pytorch_model-1.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@cache
def glide() -> Path:
    """GLIDE's files, tiny."""
    folder = Path("glide").resolve()
    glide_rig.write(folder, "base.pt")
    return folder


# What reads them


def read_pipeline(folder: Path) -> None:
    """Planned, and its CLIP used."""
    pipeline = load(folder, device="cpu")
    pipeline.settings()
    pipeline.clip_encoder.encode_text([PROMPT])


def read_listed(folder: Path) -> None:
    """What is read of a folder that nobody asked for."""
    read_manifest(folder)
    read_seen(folder)


def read_unfinished(folder: Path) -> None:
    """A folder whose training hasn't come to its end."""
    for name in ("pipeline.json", "README.md"):
        (folder / name).unlink()
    known_pipelines()
    locate(folder)


def read_tokenizer(folder: Path) -> None:
    """Words to ids and back."""
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    tokenizer.decode(tokenizer([PROMPT])[0].tolist())
    tokenizer.unknown_words(PROMPT)


def read_clip(folder: Path) -> None:
    """A text's embedding."""
    loaded = load_clip(folder)
    CLIPEncoder(loaded.model, tokenizer=loaded.tokenizer).encode_text([PROMPT])  # type: ignore[arg-type]


def read_clip_tokenizer(folder: Path) -> None:
    """Words to ids."""
    Tokenizer.from_clip_folder(folder)([PROMPT])


def read_karlo(folder: Path) -> None:
    """The parts, each with its weights, in the order in which a run has them."""
    parts = KarloParts(folder, Placement("cpu", "float32"))
    parts.check()
    parts.tokenizer([PROMPT])  # type: ignore[operator]
    prior = parts.prior()
    parts.prior_weights(prior)
    parts.decoder()
    parts.upsampler()


def read_glide_vocabulary(folder: Path) -> None:
    """Words to ids."""
    GlideTokenizer.from_glide_folder(folder, context_length=12)([PROMPT])


def read_glide(folder: Path) -> None:
    """The network."""
    from dalle_2.pipelines.glide import load_glide_model

    load_glide_model(folder / "base.pt", TINY_GLIDE)


_OF = glide_rig.TINY
TINY_GLIDE: dict[str, Any] = {
    "image_size": 16, "sinusoid": _OF.width,
    "caption": {
        "width": _OF.text, "depth": _OF.text_depth, "heads": _OF.text_heads, "vocab_size": _OF.vocabulary,
        "context_length": _OF.context, "pad_id": 0, "eos_id": 0, "causal": False, "padding": True,
    },
    "unet": {
        "channels": _OF.width, "t_dim": 4 * _OF.width, "head_channels": _OF.head, "groups": _OF.groups,
        "resample": "residual", "out_channels": 6, "z_dim": 0, "context_tokens": 0, "context_dim": _OF.text,
        "text_dim": _OF.text, "text_projection": False, "multiples": list(_OF.multiples), "blocks": _OF.blocks,
        "attention": list(_OF.attends),
    },
}  # fmt: skip


# Recipes


def recipe(random: Random, folder: Path) -> Path:
    """A recipe whose values or whose text isn't sound."""
    from dalle_2.presets import RECIPES_TEXT as text

    path = folder / "recipe.toml"
    path.write_bytes(damaged(random, text.encode()))
    return path


def _toml(values: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


CASES = {
    "pipelines of ours": Case(one_of(micro, "*.safetensors", "*.json"), read_pipeline),
    "manifests and lists of pictures": Case(one_of(micro, "pipeline.json", "seen-pictures.txt"), read_listed),
    "unfinished trainings": Case(one_of(micro, "run/stages.json"), read_unfinished),
    "tokenizers of ours": Case(one_of(micro, "tokenizer.json"), read_tokenizer),
    "settings of a CLIP": Case(one_of(clip, "config.json", "preprocessor_config.json"), read_clip),
    "weights of a CLIP": Case(one_of(clip, "model.safetensors"), read_clip),
    "weights of a CLIP in several files": Case(one_of(sharded_clip, "*.bin", "*.index.json"), read_clip),
    "tokenizers of a CLIP": Case(one_of(clip, "tokenizer*.json"), read_clip_tokenizer),
    "vocabularies of a CLIP": Case(one_of(slow_clip, "vocab.json", "merges.txt"), read_clip_tokenizer),
    "settings of a Karlo": Case(one_of(karlo, "model_index.json", "*/*.json"), read_karlo),
    "weights of a Karlo": Case(one_of(karlo, "*/*.safetensors"), read_karlo),
    "vocabularies of GLIDE": Case(one_of(glide, "*.gz"), read_glide_vocabulary),
    "weights of GLIDE": Case(one_of(glide, "base.pt"), read_glide),
}
