"""Models on their way to a copy or to another process: weights that lie in a file are read there, not carried along."""

import io
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dalle_2.errors import Dalle2Error
from dalle_2.models.rest import Rest, origin
from dalle_2.models.turns import making


class Packed:
    """Anything with models in it, as bytes; unpickled or copied it is that thing again.

    Parts of the models are as they were before they first worked, without the weights that they have from files.
    Weights that were changed since, or whose file has gone, go along. All tensors are in the bytes: a process that is
    started would else be handed some that end before it begins.
    """

    def __init__(self, content: object, models: Iterable[nn.Module]) -> None:
        with making, io.BytesIO() as file:
            Packer(file, _instead(models)).dump(content)
            self.bytes = file.getvalue()

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self.bytes,)


class Packer(pickle.Pickler):
    """A pickler that puts other things in the place of some. instead: those, by the id of what they stand for."""

    def __init__(self, file: io.BytesIO, instead: Mapping[int, object]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.instead = instead

    def reducer_override(self, given: object) -> Any:
        """What pickle asks of every object: how to make it again."""
        found = self.instead.get(id(given))
        return NotImplemented if found is None else found.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _instead(models: Iterable[nn.Module]) -> dict[int, object]:
    """What stands for the weights that models have from files, and for what remembers that they have been read."""
    instead: dict[int, object] = {}
    for part in {part for model in models for part in model.modules()}:
        rest, gone = origin(part), _read_anew(part)
        if rest is not None and gone is not None:
            own = part.state_dict(keep_vars=True)
            instead[id(rest)] = Rest(rest.device, rest.read, rest.kept)
            instead |= {id(own[name]): _in_place_of(own[name], value) for name, value in gone.items()}
    return instead


def _read_anew(part: nn.Module) -> Mapping[str, Tensor] | None:
    """What stands for the weights that a part has from its file; None for one that keeps all it has."""
    rest = origin(part)
    if rest is None or not rest.over:
        return None if rest is None else rest.away or {}
    own = part.state_dict()
    try:
        weights = rest.weights(part)
    except (Dalle2Error, OSError):
        return None
    if not all(name in own and _same(own[name], value) for name, value in weights.items()):
        return None
    return {name: torch.empty_like(own[name], device="meta") for name in weights}


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape) and torch.equal(a, b)


def _in_place_of(own: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=own.requires_grad) if isinstance(own, nn.Parameter) else value
