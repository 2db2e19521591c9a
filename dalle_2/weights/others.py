"""Weight files as people write them: a state dict, one among other things, a whole trainer's state; of any of them the
tensors, and the settings where it has some."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dalle_2.weights.checkpoint import SAFETENSORS, read_tensors, tensors_of, unpickled
from dalle_2.weights.prefixes import plain_names

# What a table of weights is called in such files; the average comes before the weights it is of.
TABLES = (
    "ema", "ema_state_dict", "model_ema", "model", "state_dict", "model_state_dict", "weights", "net", "params",
    "tensors",
)  # fmt: skip
SETTINGS = ("config", "settings", "cfg", "hyper_parameters", "model_config")
KINDS = ("kind", "model_type")
DEEPEST = 3  # levels of such a file that are looked into


class Found(NamedTuple):
    """Tensors by plain names; settings and kind, None where the file says nothing of them."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    kind: str | None


def found(path: Path, wanted: str | None = None) -> Found | None:
    """The weights of a file; None where there are none. Raises CheckpointError as `load_checkpoint`.

    wanted: the kind of model that is looked for, whose name a table may bear.
    """
    content: Any = read_tensors(path) if path.suffix in SAFETENSORS else unpickled(path)
    for table, parents in _tables(content, (*((wanted,) if wanted else ()), *TABLES)):
        config = next((one for parent in parents if (one := _settings(parent)) is not None), None)
        kinds = (parent[name] for parent in parents for name in KINDS if isinstance(parent.get(name), str))
        return Found(plain_names(table), config, next(kinds, None))
    return None


def without_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Tensors without the first part of their names, as `model.`, if all share one; else None."""
    firsts = {name.partition(".")[0] for name in tensors}
    shared = len(firsts) == 1 and all("." in name for name in tensors)
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items()} if shared else None


def _tables(content: Any, names: tuple[str, ...], *parents: Any) -> Iterator[tuple[dict[str, Tensor], tuple[Any, ...]]]:
    """Tables of tensors, the one that is meant most likely first, each with what it lies in, from within outwards."""
    if not isinstance(content, Mapping) or len(parents) > DEEPEST:
        return
    if content and len(tensors_of(content)) == len(content):
        yield dict(content), parents
        return
    for name in names:
        if name in content:
            yield from _tables(content[name], names, content, *parents)


def _settings(content: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((dict(content[name]) for name in SETTINGS if isinstance(content.get(name), Mapping)), None)
