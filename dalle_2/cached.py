"""What lies in the local cache of the Hugging Face hub, whole or in part; wants neither network nor hub client."""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dalle_2.errors import CheckpointError
from dalle_2.json_file import read_object
from dalle_2.paths import hub_cache

SAFE, PICKLED = "*.safetensors", "*.bin"  # a pickle only in a folder that has nothing else
INDEX, MANIFEST = "model_index.json", "pipeline.json"  # of a pipeline in the layout of diffusers, and in ours
AGAIN = ("open_clip_*", "*.fp16.*")  # weights that the hub has in the form that is read, too
# Of a CLIP, in order of preference; an index lists the files of a model in several parts.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # in one form or the other


def cached(repo: str) -> Path | None:
    """The folder of a hub id in the local cache, if it is whole: all that its index names, and the weights of each
    part that has a config.json."""
    reference = home(repo) / "refs" / "main"
    if not reference.is_file():
        return None
    folder = home(repo) / "snapshots" / reference.read_text(encoding="utf-8").strip()
    try:
        return folder if _is_whole(folder) else None
    except CheckpointError:  # an index that can't be read
        return None


def cached_clip(repo: str) -> Path | None:
    """The folder of a CLIP in the local cache, if it is whole: settings, a tokenizer and weights."""
    folder = cached(repo)
    if folder is None or not _all(folder, ["config.json"]):
        return None
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if weights is None or not any(_all(folder, names) for names in TOKENIZER_FILES):
        return None
    return folder if _all(folder, parts_of(weights)) else None


def parts_of(weights: Path) -> list[str]:
    """The names of the files that hold a model's tensors: the one given, or those that an index lists.

    Raises CheckpointError for an index that can't be read.
    """
    if weights.suffix != ".json":
        return [weights.name]
    table = read_object(weights, f"there is no {weights}").get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"{weights} is damaged: it has no weight_map of file names")
    # Only plain names: an index must not lead out of its folder.
    return sorted({Path(name).name for name in table.values()})


def is_read(name: str) -> bool:
    """Whether a file of the hub is none of those that are left out."""
    return not any(fnmatch(name, form) for form in AGAIN)


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
    return all((folder / name).exists() for name in names)


def _has_weights(folder: Path) -> bool:
    found = [path for form in (SAFE, PICKLED) for path in folder.glob(form)]
    return any(path.is_file() and is_read(path.name) for path in found)  # no link that leads nowhere
