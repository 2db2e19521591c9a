"""A Karlo of a few thousand random weights, made by the public classes of diffusers and transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

DIM, CONTEXT, SIZE, LARGE = 32, 16, 16, 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build(folder: Path, *, vision: bool = True) -> Any:
    """Writes the folder, and gives diffusers' pipeline of it. vision: with the image encoder of the variations."""
    from diffusers import PriorTransformer, UnCLIPPipeline, UnCLIPScheduler
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    torch.manual_seed(0)
    parts = {
        "prior": PriorTransformer(
            num_attention_heads=4, attention_head_dim=8, num_layers=2, embedding_dim=DIM, num_embeddings=CONTEXT,
            additional_embeddings=4,
        ),
        "decoder": unet(True),
        "text_proj": UnCLIPTextProjModel(clip_embeddings_dim=DIM, time_embed_dim=128, cross_attention_dim=24),
        "super_res_first": unet(False),
        "super_res_last": unet(False, sample_size=None),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(folder),
    }  # fmt: skip
    for name, model in parts.items():
        if name != "tokenizer":
            randomise(model)
    parts["prior"].clip_std.data = 0.5 + torch.rand(1, DIM)
    kinds = {"prior": ("fixed_small_log", "sample", 5.0), "decoder": ("learned_range", "epsilon", 1.0)}
    for stage in ("prior", "decoder", "super_res"):
        variance, prediction, reach = kinds.get(stage, ("fixed_small_log", "epsilon", 1.0))
        parts[f"{stage}_scheduler"] = UnCLIPScheduler(
            variance_type=variance, prediction_type=prediction, clip_sample_range=reach
        )
    pipeline = UnCLIPPipeline(**parts)
    pipeline.save_pretrained(folder)
    if vision:
        image_encoder().save_pretrained(folder / "image_encoder")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unet(decodes: bool, **changes: Any) -> Any:
    """The decoder's network, or one of super-resolution."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    shared = {
        "sample_size": SIZE if decodes else LARGE, "block_out_channels": (32, 64), "layers_per_block": 2,
        "norm_num_groups": 8, "in_channels": 3 if decodes else 6, "out_channels": 6 if decodes else 3,
    } | changes  # fmt: skip
    if not decodes:
        return UNet2DModel(
            down_block_types=("ResnetDownsampleBlock2D",) * 2, up_block_types=("ResnetUpsampleBlock2D",) * 2,
            add_attention=False, **shared,
        )  # fmt: skip
    return UNet2DConditionModel(
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=16, cross_attention_dim=24, class_embed_type="identity",
        resnet_time_scale_shift="scale_shift", **shared,
    )  # fmt: skip


def text_encoder() -> Any:
    """CLIP's text tower."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=600, hidden_size=DIM, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=CONTEXT, projection_dim=DIM, bos_token_id=0, eos_token_id=2,
        )
    ).eval()  # fmt: skip


def image_encoder() -> Any:
    """CLIP's image tower."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=DIM, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8,
        projection_dim=DIM,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()


def tokenizer(folder: Path, context: int = CONTEXT) -> Any:
    """CLIP's, over single bytes; it fills rows up with "!"."""
    from transformers import CLIPTokenizer

    home = folder / "vocabulary"
    home.mkdir(parents=True)
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter != "!"]
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in ["!", *letters]), BOS, EOS]
    (home / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (home / "merges.txt").write_text("#version: 0.2\n")
    made = CLIPTokenizer.from_pretrained(home, model_max_length=context, pad_token="!")
    made.model_max_length = context
    return made


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Moves what begins at zero or one, and would not show if it were left out."""
    for parameter in model.parameters():
        if parameter.ndim < 2 or not parameter.any():
            parameter += 0.1 * torch.randn_like(parameter)
