"""A `DALLe2` of Karlo's shape -> a folder in the layout of diffusers' UnCLIP, for `UnCLIPPipeline.from_pretrained`."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.clip import CLIP
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.decoder import Decoder
from dalle_2.models.parts import check_whole
from dalle_2.models.prior import Prior
from dalle_2.models.rest import whole
from dalle_2.models.upsampler import Upsampler
from dalle_2.paths import atomic_path, atomic_write_text, holds_something
from dalle_2.pipelines import karlo_settings as settings
from dalle_2.pipelines.find import FOREIGN
from dalle_2.pipelines.karlo import CLASSES
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.weights.hf_clip import clip_pairs
from dalle_2.weights.karlo_names import TEXT, prior_pairs, text_pairs, time_pairs, unet_pairs
from dalle_2.weights.layout import to_theirs
from dalle_2.weights.narrowing import narrowed
from dalle_2.weights.safetensors_file import write_safetensors

VERSION = "0.11.0.dev0"  # of diffusers, when Karlo came to it
LIBRARIES = {"text_proj": "unclip", "text_encoder": "transformers"}
VISION = ("vision_model.", "visual_projection.")


class Shaped(NamedTuple):
    """The parts of a pipeline of Karlo's shape."""

    clip: CLIP
    tokenizer: Tokenizer
    prior: Prior
    decoder: Decoder
    upsampler: Upsampler


def export_karlo(pipeline: DALLe2, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Writes a pipeline that has Karlo's shape, such as one that was trained on, for diffusers to load.

    dtype: of the weights; None keeps theirs. Everything is written aside and moved in at the end, the index last.
    Raises UsageError for a folder that holds something and for a pipeline of another shape, CheckpointError if
    something can't be written.
    """
    folder = Path(folder)
    if holds_something(folder):
        raise UsageError(f"{folder} is there already and not empty: choose another folder to export to")
    shaped = _shaped(pipeline)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=folder) as temporary:
            aside = Path(temporary)
            for part, tensors in _tensors(shaped):
                _write(aside / part, part, tensors, dtype)
            for part, config in settings.configs(shaped.clip, shaped.prior, shaped.decoder, shaped.upsampler).items():
                name = "scheduler_config.json" if part.endswith("scheduler") else "config.json"
                atomic_write_text(aside / part / name, json.dumps({"_class_name": CLASSES[part], **config}, indent=2))
            _write_tokenizer(shaped.tokenizer, aside / "tokenizer")
            atomic_write_text(aside / FOREIGN, json.dumps(_index(), indent=2))
            for path in sorted(aside.iterdir(), key=lambda path: path.name == FOREIGN):
                os.replace(path, folder / path.name)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error.strerror or error}") from error
    return folder


def _shaped(pipeline: DALLe2) -> Shaped:
    """Raises UsageError for a pipeline that the layout has no place for."""
    check_whole(pipeline)
    encoder, prior, decoder, upsamplers = pipeline.clip_encoder, pipeline.prior, pipeline.decoder, pipeline.upsamplers
    model, tokenizer = (getattr(encoder, name, None) for name in ("model", "tokenizer"))
    unet = decoder.config.unet
    if (
        isinstance(encoder, CLIPEncoder)
        and isinstance(model, CLIP)
        and isinstance(tokenizer, Tokenizer)
        and isinstance(prior, Prior)
        and prior.config.text_positions
        and (unet.pooled_dim and unet.norm_text and decoder.draft is None)
        and (len(upsamplers) == 1 and upsamplers[0].last is not None)
        and all(stage.precondition is None for stage in (prior, decoder, upsamplers[0]))
    ):
        return Shaped(whole(model), tokenizer, prior, decoder, upsamplers[0])
    raise UsageError(
        "this pipeline doesn't have Karlo's shape, a prior and a decoder that read CLIP's text states and one "
        "upsampler with a network for its last step: diffusers has no place for it"
    )


def _tensors(shaped: Shaped) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every part's tensors, by their names there."""
    prior, unet, large = shaped.prior, shaped.decoder.config.unet, shaped.upsampler
    space = prior.space
    statistics = {
        name: torch.tensor([values], dtype=torch.float32, device="cpu")
        for name, values in (("clip_mean", space.mean), ("clip_std", space.std))
    }
    yield "prior", to_theirs(prior_pairs(prior.config.depth), prior.state_dict()) | statistics

    pairs = [
        *time_pairs("time"),
        *unet_pairs("network", len(unet.multiples), unet.blocks, unet.attention, unet.middle_attention),
        *text_pairs("network", unet.context_tokens, unet.context_width),
    ]
    made = to_theirs(pairs, shaped.decoder.state_dict())
    beside = {name.removeprefix(f"{TEXT}."): made.pop(name) for name in list(made) if name.startswith(f"{TEXT}.")}
    yield "decoder", made
    yield "text_proj", beside

    unet, state = large.config.unet, large.state_dict()
    pairs = [*time_pairs("time"), *unet_pairs("network", len(unet.multiples), unet.blocks, (), False)]
    yield "super_res_first", to_theirs(pairs, state)
    last = {name.removeprefix("last."): x for name, x in state.items() if name.startswith("last.")}
    yield "super_res_last", to_theirs(pairs, last)

    text, vision = shaped.clip.config.text, shaped.clip.config.vision
    towers = to_theirs(clip_pairs(text.depth, vision.depth if vision else 0), shaped.clip.state_dict())
    towers.pop("logit_scale")
    seen = {name: towers.pop(name) for name in list(towers) if name.startswith(VISION)}
    yield "text_encoder", towers
    if seen:
        yield "image_encoder", seen


def _write(folder: Path, part: str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    folder.mkdir()
    name = "model.safetensors" if part.endswith("encoder") else "diffusion_pytorch_model.safetensors"
    plain = narrowed(tensors, dtype, folder / name)
    with atomic_path(folder / name) as path:
        write_safetensors(path, plain, {"format": "pt"})


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """In both forms that readers of the layout know."""
    content = json.loads(tokenizer.library_json())
    names = {part: tokenizer.token(getattr(tokenizer, f"{part}_id")) for part in ("bos", "eos", "pad")}
    stated: dict[str, Any] = {f"{part}_token": name for part, name in names.items()}
    stated |= {"unk_token": names["eos"], "model_max_length": tokenizer.context_length}
    atomic_write_text(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False))
    atomic_write_text(folder / "tokenizer_config.json", json.dumps({"tokenizer_class": "CLIPTokenizer", **stated}))
    vocabulary = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    atomic_write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"])
    atomic_write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))


def _index() -> dict[str, Any]:
    """model_index.json of a pipeline from text to picture."""
    parts = {name: [LIBRARIES.get(name, "diffusers"), kind] for name, kind in CLASSES.items()}
    del parts["image_encoder"]
    tokenizer = ["transformers", "CLIPTokenizer"]
    return {"_class_name": "UnCLIPPipeline", "_diffusers_version": VERSION, **parts, "tokenizer": tokenizer}
