"""CLIP in the Hugging Face layout (OpenAI's, OpenCLIP's LAION models) -> ours: names and settings."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dalle_2.errors import CheckpointError
from dalle_2.weights.layout import Pair, layers

# The layout leaves out whatever equals these defaults of its own.
TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 32,
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Configs before transformers 4.31 say 2 here although the end token is the highest id.
LEGACY_EOS = 2

TOWER = {"width": "hidden_size", "mlp_width": "intermediate_size", "depth": "num_hidden_layers"} | {
    "heads": "num_attention_heads",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
}

TOP = {
    "log_scale": "logit_scale",
    "vision.projection.weight": "visual_projection.weight",
    "text.projection.weight": "text_projection.weight",
    "vision.class_token": "vision_model.embeddings.class_embedding",
    "vision.stem.weight": "vision_model.embeddings.patch_embedding.weight",
    "vision.positions": "vision_model.embeddings.position_embedding.weight",
    "text.embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
}
NORMS = {
    "vision.norm_in": "vision_model.pre_layrnorm",
    "vision.norm_out": "vision_model.post_layernorm",
    "text.norm_out": "text_model.final_layer_norm",
}
IN_BLOCK = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.out_proj",),
    "norm_1": ("layer_norm1",),
    "norm_2": ("layer_norm2",),
    "mlp.0": ("mlp.fc1",),
    "mlp.2": ("mlp.fc2",),
}
BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.")


def clip_pairs(text_depth: int, vision_depth: int) -> list[Pair]:
    """Every tensor of ours beside those of the layout that it is made of; the depths are numbers of blocks."""
    depths = {"text": text_depth, "vision": vision_depth}
    blocks = [
        pair
        for tower, depth in depths.items()
        for n in range(depth)
        for ours, theirs in IN_BLOCK.items()
        for pair in layers(
            f"{tower}.transformer.blocks.{n}.{ours}", *(f"{tower}_model.encoder.layers.{n}.{name}" for name in theirs)
        )
    ]
    norms = [pair for ours, theirs in NORMS.items() for pair in layers(ours, theirs)]
    return [*(Pair(ours, (theirs,)) for ours, theirs in TOP.items()), *norms, *blocks]


def is_clip_config(config: Mapping[str, Any]) -> bool:
    """True for the settings of a whole CLIP, not of another model or of one tower."""
    return config.get("model_type") == "clip" and bool(_section(config, "vision") or _section(config, "text"))


def convert_config(
    config: Mapping[str, Any], preprocessing: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json, and preprocessor_config.json if there is one -> values for our CLIPConfig.

    Raises CheckpointError if the settings are not those of a CLIP.
    """
    if not is_clip_config(config):
        raise CheckpointError(
            f"expected the settings of a CLIP, model_type 'clip' with text_config and vision_config, "
            f"got model_type {config.get('model_type')!r}"
        )
    text = TEXT_DEFAULTS | _section(config, "text")
    vision = VISION_DEFAULTS | _section(config, "vision")
    preprocessing = preprocessing or {}
    return {
        "embed_dim": config.get("projection_dim", 512),
        "text": {name: text[theirs] for name, theirs in TOWER.items()}
        | {
            "vocab_size": text["vocab_size"],
            "context_length": text["max_position_embeddings"],
            "eos_id": text["eos_token_id"],
            "pad_id": text["pad_token_id"],
            "pool": "highest" if text["eos_token_id"] == LEGACY_EOS else "eos",
        },
        "vision": {name: vision[theirs] for name, theirs in TOWER.items()}
        | {
            "image_size": vision["image_size"],
            "patch": vision["patch_size"],
            "mean": preprocessing.get("image_mean", CLIP_MEAN),
            "std": preprocessing.get("image_std", CLIP_STD),
        },
    }


def convert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames every tensor and fuses queries, keys and values; constants are left out.

    Names that are not part of the layout are kept, so that strict loading can report them.
    """
    left = without_constants(tensors)
    blocks = [found.groups() for name in left if (found := BLOCK.match(name))]
    depths = (max([1 + int(n) for tower, n in blocks if tower == wanted], default=0) for wanted in ("text", "vision"))
    made = {}
    for pair in clip_pairs(*depths):
        parts = [left.pop(name) for name in pair.theirs if name in left]
        if len(parts) == len(pair.theirs):
            made[pair.ours] = pair.joined(parts)
    return made | left


def without_constants(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but `position_ids`, which count up from zero in every file that has them."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}


def _section(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The first configs had a second section, "…_config_dict", which wins."""
    made: dict[str, Any] = {}
    for name in (f"{tower}_config", f"{tower}_config_dict"):
        section = config.get(name) or {}
        if not isinstance(section, Mapping):
            raise CheckpointError(f"{name} in the settings of a CLIP must be an object, got a {type(section).__name__}")
        made |= section
    return made
