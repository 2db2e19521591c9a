"""What the settings of Karlo's parts may be: those that are read, by part and under the names that its files have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from dalle_2.config import describe
from dalle_2.errors import CheckpointError
from dalle_2.models.layers.transformer import Activation


def _whole(most: int, least: int = 1) -> Any:
    return Annotated[int, Field(ge=least, le=most)]


def _three(least: float) -> Any:
    return Annotated[list[Annotated[float, Field(ge=least, le=1)]], Field(min_length=3, max_length=3)]


# Bounds far above any published network, and low enough that its shapes can be held against a file's.
WIDTH = Annotated[int, Field(ge=1, le=2**14)]
DEPTH, SIDE, TOKEN = _whole(2**7), _whole(2**12), _whole(2**31 - 1, 0)
FEW = _whole(2**8)
WIDTHS = Annotated[list[WIDTH], Field(min_length=1, max_length=16)]
BLOCKS = Annotated[list[str], Field(min_length=1, max_length=16)]

SCHEDULER = {"clip_sample_range": Annotated[float, Field(gt=0, le=1e6)]}
UNET = {
    "block_out_channels": WIDTHS, "down_block_types": BLOCKS, "up_block_types": BLOCKS,
    "layers_per_block": _whole(2**5), "norm_num_groups": WIDTH, "out_channels": WIDTH,
}  # fmt: skip
SUPER_RES = UNET | {"in_channels": _whole(2**14, 4)}
TOWER = {
    "hidden_size": WIDTH, "intermediate_size": _whole(2**17), "num_hidden_layers": DEPTH, "num_attention_heads": WIDTH,
    "hidden_act": Activation, "layer_norm_eps": Annotated[float, Field(gt=0, le=1)], "projection_dim": WIDTH,
}  # fmt: skip
PARTS: Mapping[str, Mapping[str, Any]] = {
    "prior": {
        "num_attention_heads": FEW, "attention_head_dim": FEW, "num_layers": DEPTH, "embedding_dim": WIDTH,
        "num_embeddings": WIDTH,
    },
    "decoder": UNET | {"sample_size": SIDE, "attention_head_dim": WIDTH, "cross_attention_dim": WIDTH},
    "text_proj": {
        "clip_embeddings_dim": WIDTH, "time_embed_dim": WIDTH, "cross_attention_dim": WIDTH,
        "clip_extra_context_tokens": FEW,
    },
    "super_res_first": SUPER_RES | {"sample_size": SIDE},
    "super_res_last": SUPER_RES,
    "text_encoder": TOWER | {
        "vocab_size": _whole(2**22), "max_position_embeddings": _whole(2**14, 2), "eos_token_id": TOKEN,
        "pad_token_id": TOKEN,
    },
    "image_encoder": TOWER | {"image_size": SIDE, "patch_size": SIDE},
    "preprocessor": {"image_mean": _three(0), "image_std": _three(1e-6)},
}  # fmt: skip
# For these, diffusers' defaults are a network that is not known here, or none at all.
NEEDED = ("block_out_channels", "down_block_types", "up_block_types", "sample_size", "in_channels")


def checked(part: str, values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A part's settings as they are.

    Raises CheckpointError naming the file and each setting that is missing, of another type, or of a size that no
    network has.
    """
    try:
        _form(SCHEDULER if part.endswith("scheduler") else PARTS[part]).model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"the settings in {path} can't be used: {describe(error)}") from None
    return values


def _form(types: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {name: (kind, ... if name in NEEDED else None) for name, kind in types.items()}
    return create_model("Part", __config__=ConfigDict(strict=True, allow_inf_nan=False), **fields)
