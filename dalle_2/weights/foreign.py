"""Weights of another layout as those of a module of ours: checked by their own names, copied only if they change."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle_2.errors import CheckpointError
from dalle_2.weights.aligned import aligned
from dalle_2.weights.checkpoint import like
from dalle_2.weights.founded import unfounded
from dalle_2.weights.layout import Pair, expected
from dalle_2.weights.listing import listed


def check(module: nn.Module, pairs: Iterable[Pair], tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises CheckpointError with one list of all tensors that are missing, not known, not numbers or mis-shaped.

    They have the names that they have in `source`. The module may lie on the meta device; of the tensors nothing is
    read.
    """
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    wanted = expected([pair for pair in pairs if pair.ours in shapes], shapes)
    problems = [
        *listed("missing", [name for name in wanted if name not in tensors]),
        *listed("not known here", [name for name in tensors if name not in wanted]),
        *listed("of another shape", _misshaped(wanted, tensors)),
        *listed("no floating-point numbers", [name for name in wanted if _is_whole(tensors.get(name))]),
        *unfounded(tensors),
    ]
    if problems:
        raise CheckpointError(f"the tensors of {source} don't fit: {'; '.join(problems)}")


def fill(module: nn.Module, pairs: Iterable[Pair], tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Puts foreign tensors, in float32, into a module that may lie on the meta device. Raises what `check` raises."""
    listed_pairs = list(pairs)
    check(module, listed_pairs, tensors, source)
    dtypes = dict.fromkeys(module.state_dict(), torch.float32)
    module.load_state_dict(aligned(converted(module, listed_pairs, tensors, dtypes, mapped=True)), assign=True)


def converted(
    module: nn.Module,
    pairs: Iterable[Pair],
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    further: Mapping[str, Tensor] | None = None,
    *,
    mapped: bool,
) -> dict[str, Tensor]:
    """Checked foreign tensors as weights of the module, each in its dtype and in the memory format of the module's own.

    further: tensors under our names that are not in the file. mapped: those of the file that change in nothing stay
    mapped; else they are copied, so that the file with all that is of no more use can go.
    """
    own = module.state_dict()
    made = {name: like(value.to(dtypes[name]), own[name]) for name, value in (further or {}).items()}
    for pair in pairs:
        if (name := pair.ours) in own:
            value = like(pair.joined([tensors[part].to(dtypes[name]) for part in pair.theirs]), own[name])
            made[name] = value if mapped or not _shares(value, tensors[pair.theirs[0]]) else value.clone()
    return made


def unchanged(
    pairs: Iterable[Pair], tensors: Mapping[str, Tensor], dtype: torch.dtype, *, maps: bool
) -> dict[str, Tensor]:
    """Weights that are the file's own and can stay mapped, by our names: of one tensor each, in that dtype already.

    maps: also those of convolutions, in the memory format that they have.
    """
    single = [(pair, tensors[pair.theirs[0]]) for pair in pairs if len(pair.theirs) == 1 and pair.to_ours is None]
    made = {pair.ours: pair.joined([value]) for pair, value in single if value.dtype == dtype}
    return {name: value for name, value in made.items() if maps or value.ndim != 4}


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _misshaped(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]


def _is_whole(tensor: Tensor | None) -> bool:
    return tensor is not None and not tensor.is_floating_point()
