"""The config.json of Karlo's parts -> values for our settings. What is left out there has its class's default."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle_2.errors import CheckpointError
from dalle_2.models.clip import CLIP
from dalle_2.models.decoder import Decoder
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.layers.text_transformer import TextConfig, TowerConfig
from dalle_2.models.prior import Prior
from dalle_2.models.upsampler import Upsampler
from dalle_2.weights.hf_clip import LEGACY_EOS, TOWER

Config = Mapping[str, Any]
STEPS = {"prior": 25, "decoder": 25, "upsampler": 7}  # Karlo's quick ones
GUIDANCE = {"prior": 4.0, "decoder": 8.0}
SPACING = "linspace"

# What our modules can do: a part that says otherwise is refused, not misread.
PRIOR = {
    "added_emb_type": "prd", "encoder_hid_proj_type": "linear", "norm_in_type": None, "time_embed_act_fn": "silu",
    "embedding_proj_norm_type": None, "time_embed_dim": None, "embedding_proj_dim": None, "clip_embed_dim": None,
    "additional_embeddings": 4,
}  # fmt: skip
UNET = {
    "act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
    "mid_block_scale_factor": 1,
}  # fmt: skip
DECODER = UNET | {
    "class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift", "only_cross_attention": False,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_norm": None, "encoder_hid_dim": None,
}  # fmt: skip
SUPER_RES = UNET | {"resnet_time_scale_shift": "default", "add_attention": False, "class_embed_type": None}
SCHEDULER = {"num_train_timesteps": 1000, "clip_sample": True}
OF_SCHEDULERS = {"variance_type": "fixed_small_log", "prediction_type": "epsilon"}  # where they say nothing
ATTENDS = {"SimpleCrossAttnDownBlock2D": True, "ResnetDownsampleBlock2D": False}
UP = {"SimpleCrossAttnUpBlock2D": True, "ResnetUpsampleBlock2D": False}


def prior(
    config: Config, scheduler: Config, text: TextConfig, empty: Sequence[int], mean: list[float], std: list[float]
) -> dict[str, Any]:
    """`PriorTransformer` and its scheduler -> `PriorConfig`."""
    _check("prior", config, PRIOR)
    heads, dim = config.get("num_attention_heads", 32), config.get("embedding_dim", 768)
    width = heads * config.get("attention_head_dim", 64)
    return {
        **_process("prior", scheduler, "x_0", variance="fixed_small_log"),
        "dim": dim, "width": width, "heads": heads, "depth": config.get("num_layers", 20), "sinusoid": width,
        "candidates": 1, "caption": text, "text_positions": config.get("num_embeddings", 77), "time_projection": False,
        "empty": empty, "space": {**raw(dim), "mean": mean, "std": std}, "text_space": raw(dim),
    }  # fmt: skip


def decoder(
    config: Config, project: Config, scheduler: Config, text: TextConfig, embed_dim: int, empty: Sequence[int]
) -> dict[str, Any]:
    """`UNet2DConditionModel`, `UnCLIPTextProjModel` and a scheduler -> `DecoderConfig`."""
    _check("decoder", config, DECODER)
    dim, time = project.get("clip_embeddings_dim", 768), project.get("time_embed_dim", 1536)
    unet = _unet("decoder", config) | {
        "attention": _attending(config), "middle_attention": True, "head_channels": config.get("attention_head_dim", 8),
        "out_channels": config.get("out_channels", 4), "text_dim": text.width, "pooled_dim": embed_dim,
        "norm_text": True, "z_dim": dim, "context_tokens": project.get("clip_extra_context_tokens", 4),
        "context_dim": project.get("cross_attention_dim", 768), "scale_shift": True,
    }  # fmt: skip
    for name, here, there in (
        ("time_embed_dim", time, unet["t_dim"]),
        ("cross_attention_dim", unet["context_dim"], config.get("cross_attention_dim", 1280)),
    ):
        if here != there:
            raise CheckpointError(f"text_proj has {name} {here} and the decoder {there}: they don't belong together")
    return {
        **_process("decoder", scheduler, "eps", variance="learned_range"),
        "learned_variance": True, "sinusoid": unet["channels"], "image_size": config.get("sample_size"), "unet": unet,
        "space": raw(dim), "caption": text, "empty": empty,
    }  # fmt: skip


def upsampler(first: Config, last: Config, scheduler: Config, small: int | None) -> dict[str, Any]:
    """Both `UNet2DModel` of super-resolution and a scheduler -> `UpsamplerConfig`. small: pixels of what comes in."""
    for name, config in (("super_res_first", first), ("super_res_last", last)):
        _check(name, config, SUPER_RES)
    unet = _unet("super_res_first", first)
    if unet != _unet("super_res_last", last):
        raise CheckpointError("super_res_first and super_res_last are networks of different shapes")
    unet |= {
        "attention": (), "middle_attention": False, "z_dim": 0, "context_tokens": 0, "scale_shift": False,
        "out_channels": first.get("out_channels", 3), "low_res_channels": first.get("in_channels", 3) - 3,
    }  # fmt: skip
    return {
        **_process("upsampler", scheduler, "eps", variance="fixed_small_log"),
        "sinusoid": unet["channels"], "image_size": first.get("sample_size"), "low_res_size": small, "drop": 0.0,
        "antialiased": True, "last": True, "unet": unet,
    }  # fmt: skip


def configs(clip: CLIP, prior: Prior, decoder: Decoder, upsampler: Upsampler) -> dict[str, dict[str, Any]]:
    """The settings of every part as the layout has them, in the order of its parts: the way back."""
    first, unet, large = prior.config, decoder.config.unet, upsampler.config
    made: dict[str, dict[str, Any]] = {
        "prior": {
            "num_attention_heads": first.heads, "attention_head_dim": first.width // first.heads,
            "num_layers": first.depth, "embedding_dim": first.dim, "num_embeddings": first.text_positions,
            "additional_embeddings": 4, "dropout": 0.0,
        },
        "decoder": _network(unet, decoder.config.image_size) | {
            "attention_head_dim": unet.head_channels, "cross_attention_dim": unet.context_width,
            "class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift", "only_cross_attention": False,
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "in_channels": 3,
        },
        "text_proj": {
            "clip_embeddings_dim": unet.z_dim, "clip_extra_context_tokens": unet.context_tokens,
            "time_embed_dim": unet.t_dim, "cross_attention_dim": unet.context_width,
        },
        "text_encoder": _tower(clip.config.text) | {
            "model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"],
            "vocab_size": clip.config.text.vocab_size, "max_position_embeddings": clip.config.text.context_length,
            "eos_token_id": LEGACY_EOS if clip.config.text.pool == "highest" else clip.config.text.eos_id,
            "bos_token_id": 0, "pad_token_id": clip.config.text.pad_id, "projection_dim": clip.config.embed_dim,
        },
    }  # fmt: skip
    for name in ("super_res_first", "super_res_last"):
        made[name] = _network(large.unet, large.image_size) | {
            "in_channels": 3 + large.unet.low_res_channels, "add_attention": False,
            "resnet_time_scale_shift": "default",
        }  # fmt: skip
    if clip.config.vision:
        vision = clip.config.vision
        made["image_encoder"] = _tower(vision) | {
            "model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"],
            "image_size": vision.image_size, "patch_size": vision.patch, "projection_dim": clip.config.embed_dim,
        }  # fmt: skip
    for name, stage, variance, said in (
        ("prior", prior, "fixed_small_log", "sample"),
        ("decoder", decoder, "learned_range", "epsilon"),
        ("super_res", upsampler, "fixed_small_log", "epsilon"),
    ):
        made[f"{name}_scheduler"] = SCHEDULER | {
            "variance_type": variance, "prediction_type": said, "clip_sample_range": stage.settings.clip,
        }  # fmt: skip
    return made


def _network(unet: DecoderUNetConfig, size: int) -> dict[str, Any]:
    """A U-Net's settings, but for what decoder and super-resolution don't share."""
    down, up = ({attends: name for name, attends in kinds.items()} for kinds in (ATTENDS, UP))
    attends = [level in unet.attention for level in range(len(unet.multiples))]
    return {
        "sample_size": size, "block_out_channels": [unet.channels * multiple for multiple in unet.multiples],
        "layers_per_block": unet.blocks, "norm_num_groups": unet.groups, "norm_eps": 1e-5, "act_fn": "silu",
        "out_channels": unet.out_channels, "flip_sin_to_cos": True, "freq_shift": 0,
        "down_block_types": [down[one] for one in attends], "up_block_types": [up[one] for one in reversed(attends)],
    }  # fmt: skip


def _tower(config: TowerConfig) -> dict[str, Any]:
    """A tower of CLIP."""
    return {theirs: getattr(config, ours) for ours, theirs in TOWER.items()} | {
        "intermediate_size": config.mlp_width or 4 * config.width
    }


def whitening(tensors: dict[str, Tensor], source: Path) -> tuple[list[float], list[float]]:
    """Takes the mean and the spread of image embeddings out of the prior's tensors.

    Raises CheckpointError where they are missing, or zero as in a prior that never got them: it would draw one and the
    same embedding whatever is asked.
    """
    if not {"clip_mean", "clip_std"} <= tensors.keys():
        raise CheckpointError(f"{source} lacks clip_mean or clip_std, without which its embeddings can't be scaled")
    mean, std = (tensors.pop(name).double().flatten() for name in ("clip_mean", "clip_std"))
    if not bool((std > 0).all()):
        raise CheckpointError(
            f"clip_std in {source} is not above zero everywhere: these are not the trained weights, or not all of them"
        )
    return mean.tolist(), std.tolist()


def raw(dim: int) -> dict[str, Any]:
    """The space of embeddings as CLIP gives them."""
    return {"dim": dim, "normalised": False}


def _process(stage: str, scheduler: Config, target: str, *, variance: str) -> dict[str, Any]:
    """What a scheduler says of the noise. Raises CheckpointError for what no Karlo says."""
    said = "sample" if target == "x_0" else "epsilon"
    wanted = SCHEDULER | {"variance_type": variance, "prediction_type": said}
    _check(f"{stage}'s scheduler", scheduler, wanted, OF_SCHEDULERS)
    return {
        "T": 1000, "schedule": "cosine", "target": target, "clip": scheduler.get("clip_sample_range", 1.0),
        "steps": STEPS[stage], "guidance": GUIDANCE.get(stage, 1.0), "spacing": SPACING,
        "sigma_data": None,
    }  # fmt: skip


def _unet(part: str, config: Config) -> dict[str, Any]:
    """What both U-Nets share."""
    widths = config.get("block_out_channels") or [0]
    if widths[0] < 1 or any(width % widths[0] for width in widths):
        raise CheckpointError(f"{part} has levels of {widths} channels: each must be a multiple of the first")
    if any(block not in ATTENDS for block in config.get("down_block_types", ())) or any(
        block not in UP for block in config.get("up_block_types", ())
    ):
        raise CheckpointError(f"{part} has blocks of a kind that is not known here: {_blocks(config)}")
    counts = [len(config.get(name, ())) for name in ("block_out_channels", "down_block_types", "up_block_types")]
    if len(set(counts)) > 1:
        raise CheckpointError(
            f"{part} has {counts[0]} block_out_channels, {counts[1]} down_block_types and {counts[2]} up_block_types: "
            "each must have one a level"
        )
    return {
        "channels": widths[0], "multiples": [width // widths[0] for width in widths],
        "blocks": config.get("layers_per_block", 2), "t_dim": 4 * widths[0], "resample": "residual",
        "groups": config.get("norm_num_groups", 32),
    }  # fmt: skip


def _attending(config: Config) -> list[int]:
    """The levels that attend, 0 the finest; down and up they are the same."""
    down = [ATTENDS[block] for block in config["down_block_types"]]
    up = [UP[block] for block in reversed(config["up_block_types"])]
    if down != up:
        raise CheckpointError(f"the decoder attends on other levels up than down: {_blocks(config)}")
    return [level for level, attends in enumerate(down) if attends]


def _blocks(config: Config) -> str:
    return ", ".join([*config.get("down_block_types", ()), *config.get("up_block_types", ())])[:400]


def _check(part: str, config: Config, wanted: Config, defaults: Config | None = None) -> None:
    """Raises CheckpointError naming settings that our modules don't have."""
    defaults = {**wanted, **(defaults or {})}
    wrong = [name for name, value in wanted.items() if config.get(name, defaults[name]) != value]
    if wrong:
        named = ", ".join(f"{name} {repr(config.get(name))[:80]} (known: {wanted[name]!r})" for name in wrong)
        raise CheckpointError(f"the {part} has settings that are not known here: {named}")
