"""A pipeline folder <-> a `DALLe2`: weight files, a tokenizer, pipeline.json and a model card, all side by side."""

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.checkpoints import Stored, save_model, shelved
from dalle_2.models.clip import CLIP
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.fit import Encoder, check_fit
from dalle_2.models.parts import ALTERNATIVES, PRIORS, check_whole
from dalle_2.models.placement import Placement
from dalle_2.models.rest import Shelved, whole
from dalle_2.models.stages import StageDefaults, named
from dalle_2.paths import at_home, atomic_write_text, clear_leftovers
from dalle_2.pipelines.card import default_card
from dalle_2.pipelines.find import FOREIGN, find_pipeline, holds_glide
from dalle_2.pipelines.kandinsky import PIPELINES as KANDINSKY
from dalle_2.pipelines.kandinsky import load_kandinsky
from dalle_2.pipelines.karlo import load_karlo, read_json
from dalle_2.pipelines.karlo_original import load_karlo_original
from dalle_2.pipelines.manifest import CARD, MANIFEST, Manifest, Part, read_manifest, sha256, write_manifest
from dalle_2.pipelines.moving import move_in
from dalle_2.place import require_place
from dalle_2.text.tokenizer import Tokenizer

OPENCLIP = "openclip:"
KARLO = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")

# Beyond this, reading a file once more costs more than it tells: a truncated one is noticed anyway.
VERIFIED_BYTES = 256 * 2**20


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    low_memory: bool = False,
    compiled: bool = False,
) -> DALLe2:
    """A whole pipeline from a shipped name ("shapes-tiny"), a folder, or a hub id; parts load when first used.

    The folder may be one of ours, a Karlo in the layout of diffusers, one of Karlo's own files, or one of Kandinsky's
    priors, which come without a decoder. How it runs is said as in `Parts`; a Karlo's own dtype ("auto") is bfloat16
    where the processor multiplies tiles of it.

    Raises UsageError for an unknown pipeline and for GLIDE, which is none of these, HubError for one that can't be
    fetched, CheckpointError for a folder that lacks a part, and when a part is first used for one that is damaged or
    isn't the one pipeline.json describes.
    """
    folder = find_pipeline(source)
    if holds_glide(folder):
        raise UsageError(
            f"{folder} holds GLIDE, which draws from captions alone and is no unCLIP: dalle2 generate takes it, and "
            "load_glide of dalle_2.pipelines.glide"
        )
    if not (folder / MANIFEST).is_file():
        return _foreign_loader(folder)(folder, placement=Placement(device, dtype, low_memory, compiled))
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    pipeline = DALLe2(
        _source(folder, manifest, "prior") if "prior" in manifest.parts else None,
        _source(folder, manifest, "decoder"),
        upsampler_paths=[_source(folder, manifest, role) for role in manifest.upsamplers],
        alternatives={role: _source(folder, manifest, role) for role in ALTERNATIVES if role in manifest.parts},
        device=device,
        dtype=dtype,
        low_memory=low_memory,
        compiled=compiled,
        defaults=StageDefaults(steps=manifest.steps, guidance=manifest.guidance, sampler=manifest.sampler),
        name=manifest.name,
        fingerprint=sha256(folder / MANIFEST),
    )
    pipeline.clip_encoder = partial(_encoder, folder, manifest, pipeline.device)
    return pipeline


def _foreign_loader(folder: Path) -> Callable[..., DALLe2]:
    """What reads a folder of another layout."""
    if not (folder / FOREIGN).is_file():
        return load_karlo_original
    named = read_json(folder / FOREIGN).get("_class_name")
    if named not in (*KARLO, *KANDINSKY):
        raise CheckpointError(
            f"{folder / FOREIGN} says that this is a {named}, and of diffusers' pipelines only {', '.join(KARLO)}, "
            f"{' and '.join(KANDINSKY)} are known here"
        )
    return load_kandinsky if named in KANDINSKY else load_karlo


def save(
    pipeline: DALLe2,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    training: Mapping[str, Any] | None = None,
    card: str | None = None,
    clip: str | None = None,
    dtype: torch.dtype | None = torch.float16,
) -> Path:
    """Writes every part of a pipeline into a folder that `load` takes.

    name: by default the folder's. training: plain values for pipeline.json. card: the text of README.md; without one
    an older README.md stays, or a short one is written. clip: a hub id, or "openclip:MODEL/tag", to be named in
    place of copying the encoder. dtype: of the weights on disk; None keeps theirs.

    All files are written aside and moved in at the end, so an older pipeline in the folder stays whole if the disk
    fills up, and a new one whose move was cut off is moved in by whoever loads it. Other files there are left alone.
    Raises CheckpointError if something can't be written, UsageError for a place that can't be one, for a CLIP that can
    neither be copied nor is named, for a pipeline in low memory, and naming two parts that don't fit each other.
    """
    folder = require_place(folder)
    check_whole(pipeline)
    _check_parts(pipeline)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=f".saving-{os.getpid()}-", dir=folder) as temporary:
            aside = Path(temporary)
            manifest = _write(pipeline, aside, name or folder.resolve().name, training or {}, clip, dtype)
            if card is not None or not (folder / CARD).exists():
                atomic_write_text(aside / CARD, card if card is not None else default_card(manifest))
            move_in(aside, folder)
    except OSError as error:
        raise CheckpointError(f"the pipeline {folder} could not be written: {error.strerror or error}") from error
    return folder


def _check_parts(pipeline: DALLe2) -> None:
    """Each way through a pipeline: what couldn't be drawn with is not written."""
    prior = {} if pipeline.prior is None else {"prior": pipeline.prior}
    usual = {**prior, "decoder": pipeline.decoder, **named(pipeline.upsamplers)}
    check_fit(pipeline.clip_encoder, usual)
    for role, model in pipeline.alternatives.items():
        replaced = role.partition("-")[0]
        check_fit(pipeline.clip_encoder, {name: model if name == replaced else own for name, own in usual.items()})


def _write(
    pipeline: DALLe2,
    folder: Path,
    name: str,
    training: Mapping[str, Any],
    clip: str | None,
    dtype: torch.dtype | None,
) -> Manifest:
    models: dict[str, nn.Module] = {"decoder": pipeline.decoder, **named(pipeline.upsamplers), **pipeline.alternatives}
    if pipeline.prior is not None:
        models = {"prior": pipeline.prior, **models}
    parts = _write_clip(pipeline.clip_encoder, clip, folder, dtype)
    parts |= {role: _write_model(model, folder / f"{role}.safetensors", dtype) for role, model in models.items()}
    manifest = Manifest(
        name=name,
        parts=parts,
        steps=pipeline.defaults.steps,
        guidance=pipeline.defaults.guidance,
        sampler=dict(pipeline.defaults.sampler),
        training=dict(training),
    )
    write_manifest(manifest, folder / MANIFEST)
    return manifest


def _write_clip(encoder: Encoder, clip: str | None, folder: Path, dtype: torch.dtype | None) -> dict[str, Part]:
    """The named CLIP, or the encoder's model and tokenizer as files; a CLIP in a folder is no name for elsewhere."""
    if clip is not None and not at_home(clip).exists():
        name = clip.removeprefix(OPENCLIP)
        return {"clip": Part(openclip=name) if clip.startswith(OPENCLIP) else Part(hub=name)}
    if not isinstance(encoder, CLIPEncoder) or not isinstance(encoder.tokenizer, Tokenizer):
        raise UsageError(
            f"this pipeline's CLIP ({type(encoder).__name__}) can't be copied into a folder: "
            f"say clip='owner/name' or clip='{OPENCLIP}MODEL/tag' to have it named there"
        )
    path = folder / "tokenizer.json"
    encoder.tokenizer.save(path)
    tokenizer = Part(file=path.name, kind="tokenizer", sha256=sha256(path))
    return {"clip": _write_model(whole(encoder.model), folder / "clip.safetensors", dtype), "tokenizer": tokenizer}


def _write_model(model: nn.Module, path: Path, dtype: torch.dtype | None) -> Part:
    save_model(model, path, dtype=dtype)
    assert isinstance(model, Stored)
    config = model.config.model_dump(mode="json")
    return Part(file=path.name, kind=model.kind, sha256=sha256(path), config=config)


def _source(folder: Path, manifest: Manifest, role: str) -> Shelved:
    part = manifest.parts[role]
    # A pipeline may have an autoregressive prior alone.
    kind = part.kind if role == "prior" and part.kind in PRIORS else ALTERNATIVES.get(role, role.partition("-")[0])
    stored = shelved(folder / str(part.file), kind)
    return Shelved(partial(_built, folder, part, stored), stored.weights)


def _built(folder: Path, part: Part, stored: Shelved) -> nn.Module:
    _verified(folder, part)
    return stored.build()


def _encoder(folder: Path, manifest: Manifest, device: torch.device) -> CLIPEncoder:
    part = manifest.parts["clip"]
    if part.file is None:
        return CLIPEncoder(part.hub or f"{OPENCLIP}{part.openclip}", device=device)
    if "tokenizer" not in manifest.parts:
        raise CheckpointError(f"{folder / MANIFEST} names no tokenizer for its clip: the pipeline is not complete")
    model = shelved(_verified(folder, part), "clip").resting(device, kept=True)
    assert isinstance(model, CLIP)
    tokenizer = Tokenizer.from_file(_verified(folder, manifest.parts["tokenizer"]))
    return CLIPEncoder(model.requires_grad_(False), tokenizer=tokenizer, device=device)


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raises CheckpointError naming what is missing, before any weight is read."""
    for role in ("clip", "decoder"):
        if role not in manifest.parts:
            raise CheckpointError(f"{folder / MANIFEST} names no {role}: the pipeline is not complete")
    for role, part in manifest.parts.items():
        if part.file is not None and not (folder / part.file).is_file():
            raise CheckpointError(f"{folder / part.file} is missing: the pipeline is not complete without its {role}")


def _verified(folder: Path, part: Part) -> Path:
    """The path of a part's file, once its content is known to be what pipeline.json says."""
    path = folder / str(part.file)
    if part.sha256 and path.stat().st_size <= VERIFIED_BYTES and sha256(path) != part.sha256:
        raise CheckpointError(
            f"{path} is not the file that {MANIFEST} describes: it is truncated, damaged or was replaced; "
            "copy it again, or build a pipeline of its parts with DALLe2 and save that"
        )
    return path
