"""A pipeline in one layout -> the same in another: a folder of ours, or one that diffusers reads."""

from pathlib import Path
from typing import Any, Literal

import torch

from dalle_2.copies import none_kept
from dalle_2.errors import UsageError
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.placement import Placement
from dalle_2.paths import atomic_write_text, holds_something
from dalle_2.pipelines.find import ORIGINAL, find_pipeline
from dalle_2.pipelines.folder import OPENCLIP, load, save
from dalle_2.pipelines.karlo_export import export_karlo
from dalle_2.pipelines.karlo_original import load_karlo_original
from dalle_2.pipelines.manifest import CARD, MANIFEST, read_manifest
from dalle_2.pipelines.seen import SEEN
from dalle_2.place import require_place
from dalle_2.published import published_as

Layout = Literal["dalle2", "diffusers"]


def convert(
    source: str, target: Path, *, to: Layout = "dalle2", dtype: torch.dtype = torch.float32, clip: str | None = None
) -> Path:
    """Writes a pipeline that `load` takes into a new folder.

    dtype: of the weights there. clip: the CLIP of Karlo's own files, a folder or a hub id.

    Raises UsageError for a target that holds something or can't be written, for a CLIP that the source doesn't ask
    for, and for a pipeline that the layout has no place for; besides what `load` and `save` raise.
    """
    if holds_something(require_place(target)):
        raise UsageError(f"{target} is there already and not empty: choose another folder to convert to")
    with none_kept():
        return _converted(find_pipeline(source), source, target, to, dtype, clip)


def _converted(
    folder: Path, source: str, target: Path, to: Layout, dtype: torch.dtype, clip: str | None
) -> Path:
    pipeline = _loaded(folder, clip)
    if to == "diffusers":
        return export_karlo(pipeline, target, dtype=dtype)
    if not (folder / MANIFEST).is_file():
        return save(pipeline, target, training=_origin(source), dtype=dtype)
    manifest, card, seen = read_manifest(folder), folder / CARD, folder / SEEN
    if seen.is_file():
        atomic_write_text(target / SEEN, seen.read_text(encoding="utf-8", errors="replace"))
    named = manifest.parts["clip"]
    return save(
        pipeline, target, training=manifest.training, dtype=dtype,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
        clip=f"{OPENCLIP}{named.openclip}" if named.openclip else named.hub,
    )  # fmt: skip


def _loaded(folder: Path, clip: str | None) -> DALLe2:
    """On the CPU and in float32, so that nothing is lost on the way."""
    if clip is None:
        return load(folder, device="cpu", dtype=torch.float32)
    if not any(folder.glob(ORIGINAL)):
        raise UsageError(f"{folder} has a CLIP of its own: only Karlo's own .ckpt files are given one")
    return load_karlo_original(folder, clip, placement=Placement("cpu", torch.float32))


def _origin(source: str) -> dict[str, Any]:
    """Where foreign weights come from, and under which licence they stay."""
    row = published_as(source)
    return {"converted_from": source} | ({"licence": f"{row.licence.name}, {row.licence.url}"} if row else {})
