"""Names of tensors without what wrappers put into them, such as the `module.` of DataParallel."""

from collections.abc import Mapping

from torch import Tensor

# torch.compile, DataParallel and its distributed kin, FSDP, activation checkpointing.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_name(name: str) -> str:
    """The name that a tensor has in a model that nothing wraps."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under those names."""
    return {plain_name(name): tensor for name, tensor in tensors.items()}
