"""Folders of pipelines, of CLIP, Karlo and GLIDE, and what lies in them beside weights: tokenizers, lists, settings.

A tiny sound folder of each is made once; for each input its files are linked, and one of them is damaged.
"""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import glide_rig
import karlo_rig
import torch

from dalle_2 import CLIPEncoder, load
from dalle_2.errors import CheckpointError
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
        return gzip.compress(bytes(2**27), 1)
    if data.startswith(b"{") and random.random() < 0.8:
        return gzip.compress(as_json(random, changed(random, json.loads(data))))
    return gzip.compress(damaged(random, data))


def case(base: Callable[[], Path], read: Callable[[Path], object], *patterns: str) -> Case:
    """Folders like the base with one of the files spoilt that fit the patterns; the base is read once as it is."""

    def make(random: Random, folder: Path) -> Path:
        linked(base(), folder)
        files = sorted(path for pattern in patterns for path in folder.glob(pattern))
        spoilt(random, random.choice(files))
        return folder

    def warm() -> None:
        with suppress(CheckpointError):  # some are read for what they lack
            read(linked(base(), fresh("sound")))

    return Case(make, read, warm=warm)


# Sound folders


def fresh(name: str) -> Path:
    """A new folder of this process."""
    folder = Path(f"{name}-{os.getpid()}").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    return folder


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
    folder = save(pipeline, fresh("micro"), training={"minutes": 1})
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
    """A Karlo in the layout of diffusers, which takes long to make: the cases of one attack share it."""
    folder = Path("karlo").resolve()
    if not folder.exists():
        made = Path(f"karlo-{os.getpid()}")
        karlo_rig.build(made)
        made.rename(folder)
    return folder


@cache
def clip() -> Path:
    """A CLIP in the Hugging Face layout."""
    folder, own = fresh("clip"), karlo()
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
    folder = linked(clip(), fresh("slow-clip"))
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n! !</w>\n")
    return folder


@cache
def sharded_clip() -> Path:
    """Its weights in the pickled form, in a file that an index names."""
    folder = linked(clip(), fresh("sharded-clip"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-1.bin")
    names = read_tensors(folder / "pytorch_model-1.bin")
    index = {"weight_map": dict.fromkeys(names, "pytorch_model-1.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@cache
def glide() -> Path:
    """GLIDE's files, tiny."""
    folder = fresh("glide")
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

VALUES = [
    "0", "-1", "1000000", "1000000000000000000", "1e308", "nan", "inf", '""', '"x"', "true", "[]", "[[]]", "{}",
    "[1, 2]", '"../../etc"', "1979-05-27", "0.5", "3", '"' + "x" * 3000 + '"', "[" * 3000, "9" * 5000,
]  # fmt: skip


def recipe(random: Random, folder: Path) -> Path:
    """A recipe whose values or whose text isn't sound."""
    lines = dict(_lines())
    for _ in range(random.choice([1, 1, 2, 5])):
        lines[random.choice(list(lines))] = random.choice(VALUES)
    text = "\n".join(f"{key} = {value}" for key, value in lines.items()).encode()
    path = folder / "recipe.toml"
    path.write_bytes(damaged(random, text) if random.random() < 0.3 else text)
    return path


@cache
def _lines() -> dict[str, str]:
    """Every setting of a recipe, as lines of TOML."""
    from dalle_2.presets import resolve

    made, left = dict[str, str](), [("", resolve(["shapes-tiny"]).model_dump(mode="json"))]
    while left:
        home, values = left.pop()
        for name, value in values.items():
            if isinstance(value, dict):
                left.append((f"{home}{name}.", value))
            elif value is not None:
                made[f"{home}{name}"] = json.dumps(value)
    return made


def read_recipe(path: Path) -> None:
    """As `dalle2 train` reads it."""
    from dalle_2.presets import resolve

    resolve([str(path)])


CASES = {
    "pipelines of ours": case(micro, read_pipeline, "*.safetensors", "*.json"),
    "manifests and lists of pictures": case(micro, read_listed, "pipeline.json", "seen-pictures.txt"),
    "unfinished trainings": case(micro, read_unfinished, "run/stages.json"),
    "tokenizers of ours": case(micro, read_tokenizer, "tokenizer.json"),
    "settings of a CLIP": case(clip, read_clip, "config.json", "preprocessor_config.json"),
    "weights of a CLIP": case(clip, read_clip, "model.safetensors"),
    "weights of a CLIP in several files": case(sharded_clip, read_clip, "*.bin", "*.index.json"),
    "tokenizers of a CLIP": case(clip, read_clip_tokenizer, "tokenizer*.json"),
    "vocabularies of a CLIP": case(slow_clip, read_clip_tokenizer, "vocab.json", "merges.txt"),
    "settings of a Karlo": case(karlo, read_karlo, "model_index.json", "*/*.json"),
    "weights of a Karlo": case(karlo, read_karlo, "*/*.safetensors"),
    "vocabularies of GLIDE": case(glide, read_glide_vocabulary, "*.gz"),
    "recipes": Case(recipe, read_recipe),
    "weights of GLIDE": case(glide, read_glide, "base.pt"),
}
