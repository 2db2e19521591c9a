"""CLIP in the Hugging Face layout (OpenAI's, OpenCLIP's LAION models) -> ours: names and settings."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dalle_2.errors import CheckpointError

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

# In this order; each pattern matches whole names. Queries, keys and values are fused afterwards.
NAMES = (
    (r"logit_scale", "log_scale"),
    (r"visual_projection\.weight", "vision.projection.weight"),
    (r"text_projection\.weight", "text.projection.weight"),
    (r"vision_model\.embeddings\.class_embedding", "vision.class_token"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "vision.stem.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "vision.positions"),
    (r"vision_model\.pre_layrnorm\.(.*)", r"vision.norm_in.\1"),
    (r"vision_model\.post_layernorm\.(.*)", r"vision.norm_out.\1"),
    (r"text_model\.embeddings\.token_embedding\.weight", "text.embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positions"),
    (r"text_model\.final_layer_norm\.(.*)", r"text.norm_out.\1"),
)
IN_BLOCK = {
    "self_attn.out_proj": "attention.out",
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "layer_norm1": "norm_1",
    "layer_norm2": "norm_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)")


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
            "mean": tuple(preprocessing.get("image_mean", CLIP_MEAN)),
            "std": tuple(preprocessing.get("image_std", CLIP_STD)),
        },
    }


def convert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames every tensor and fuses queries, keys and values; `position_ids`, a constant, is left out.

    Names that are not part of the layout are kept, so that strict loading can report them.
    """
    named = {_ours(name): tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}
    return _fused(named)


def _section(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The first configs had a second section, "…_config_dict", which wins."""
    return {**(config.get(f"{tower}_config") or {}), **(config.get(f"{tower}_config_dict") or {})}


def _ours(name: str) -> str:
    if block := BLOCK.fullmatch(name):
        tower, index, part, kind = block.groups()
        return f"{tower}.transformer.blocks.{index}.{IN_BLOCK.get(part, part)}.{kind}"
    for pattern, replacement in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _fused(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    fused = {}
    for name, tensor in named.items():
        stem, part, kind = re.fullmatch(r"(.*attention\.)(q|k|v)(\..*)|.*", name).groups()  # type: ignore[union-attr]
        if part is None:
            fused[name] = tensor
        elif part == "q":
            parts = [named.get(f"{stem}{letter}{kind}") for letter in "qkv"]
            if any(piece is None for piece in parts):
                continue
            fused[f"{stem}qkv{kind}"] = torch.cat([piece for piece in parts if piece is not None])
    return fused
