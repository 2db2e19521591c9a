"""What lies in the local cache of the Hugging Face hub, whole or in part; wants neither network nor hub client."""

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from dalle_2.errors import CheckpointError
from dalle_2.json_file import read_object
from dalle_2.paths import hub_cache

HUB_ID = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")  # owner/name: no way to elsewhere
SAFE, PICKLED = "*.safetensors", "*.bin"  # a pickle only in a folder that has nothing else
INDEX, MANIFEST = "model_index.json", "pipeline.json"  # of a pipeline in the layout of diffusers, and in ours
AGAIN = "open_clip_*"  # weights that the hub has in the form that is read, too
# Of a model as diffusers or transformers write it, in order of preference; any in full precision before all in half.
WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", "fp16", "bf16")
LONGEST_NAME = 255  # of a file, on every system
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # in one form or the other


def cached(repo: str) -> Path | None:
    """The folder of a hub id in the local cache, if it is whole: all that its index names, and the weights of each
    part that has a config.json."""
    reference = home(repo) / "refs" / "main"
    if not reference.is_file():
        return None
    try:
        folder = home(repo) / "snapshots" / reference.read_text(encoding="utf-8").strip()
        return folder if _is_whole(folder) else None
    except (CheckpointError, OSError, ValueError):  # a reference or an index that can't be read
        return None


def cached_clip(repo: str) -> Path | None:
    """The folder of a CLIP in the local cache, if it is whole: settings, a tokenizer and weights."""
    folder = cached(repo)
    if folder is None or not _all(folder, ["config.json"]):
        return None
    weights = weights_in(folder)
    if weights is None or not any(_all(folder, names) for names in TOKENIZER_FILES):
        return None
    return folder if _all(folder, parts_of(weights)) else None


def weights_in(folder: Path) -> Path | None:
    """The file of a model's weights in a folder, or the index of several; None if there is none.

    Full precision if there is some, else half of it; also where only the index of the full weights came along. Raises
    CheckpointError as `parts_of`.
    """
    found = [path for variant in VARIANTS if (path := _of_variant(folder, variant)) is not None]
    return next((path for path in found if _all(folder, parts_of(path))), found[0] if found else None)


def _of_variant(folder: Path, variant: str) -> Path | None:
    names = (form for name in WEIGHT_FILES for form in _forms(name, variant))
    return next((path for name in names if (path := folder / name).is_file()), None)


def parts_of(weights: Path) -> list[str]:
    """The names of the files that hold a model's tensors: the one given, or those that an index lists.

    Raises CheckpointError for an index that can't be read.
    """
    if weights.suffix != ".json":
        return [weights.name]
    table = read_object(weights, f"there is no {weights}").get("weight_map")
    if not isinstance(table, dict) or not all(map(_is_name, table.values())):
        raise CheckpointError(f"{weights} is damaged: it has no weight_map of file names")
    # Only plain names: an index must not lead out of its folder.
    return sorted({Path(name).name for name in table.values()})


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= LONGEST_NAME


def read_forms(paths: Iterable[PurePath]) -> list[PurePath]:
    """Files of the hub without those that repeat what others of the same folder hold: half precision where the full is
    there, and what is for open_clip."""
    paths = [path for path in paths if not fnmatch(path.name, AGAIN)]
    best: dict[PurePath, int] = {}
    for path in (path for path in paths if _is_weights(path) and path.name.startswith(STEMS)):
        best[path.parent] = min(_variant(path), best.get(path.parent, len(VARIANTS)))
    return [path for path in paths if _variant(path) <= best.get(path.parent, 0)]


def begun(repo: str) -> bool:
    """Whether some of a hub id lies in the local cache."""
    return any((home(repo) / "blobs").glob("*"))


def home(repo: str) -> Path:
    """Where a hub id has its place in the local cache."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def _is_whole(folder: Path) -> bool:
    homes = [path.parent for path in folder.rglob("config.json")]
    named = [*_named(folder)]
    return bool(homes or named) and all(map(_has_weights, homes)) and _all(folder, named)


def _named(folder: Path) -> Iterator[str]:
    """The parts that a pipeline's index says lie beside it."""
    for name, kind in _read(folder / INDEX).items():
        if isinstance(kind, list) and None not in kind:  # those are parts that it could have
            yield name
    parts = _read(folder / MANIFEST).get("parts")
    for part in parts.values() if isinstance(parts, dict) else ():
        if isinstance(part, dict) and isinstance(part.get("file"), str):
            yield part["file"]


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, "") if path.is_file() else {}


def _all(folder: Path, names: list[str] | tuple[str, ...]) -> bool:
    return all(os.path.exists(folder / name) for name in names)  # False for names that can be none


def _has_weights(folder: Path) -> bool:
    found = (path for path in folder.iterdir() if _is_weights(path) and not fnmatch(path.name, AGAIN))
    return any(path.is_file() for path in found)  # no link that leads nowhere


def _is_weights(path: PurePath) -> bool:
    return fnmatch(path.name, SAFE) or fnmatch(path.name, PICKLED)


def _variant(path: PurePath) -> int:
    """Which of VARIANTS a file is by its name, in one part or several, weights or their index."""
    return next((at for at, name in enumerate(VARIANTS) if name and re.search(rf"\.{name}[.-]", path.name)), 0)


def _forms(name: str, variant: str) -> list[str]:
    """What the weights of a variant are called, and the index of several files, which has had three names so far."""
    if not variant:
        return [name, f"{name}.index.json"]
    stem, _, suffix = name.rpartition(".")
    one = f"{stem}.{variant}.{suffix}"
    return [one, f"{name}.index.{variant}.json", f"{name}.{variant}.index.json", f"{one}.index.json"]
