"""A Karlo of random weights by the public classes of diffusers and transformers, and its parts as they run them."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import say
from torch import Tensor
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import karlo_rig

PROMPT = "a portrait of an old monk, highly detailed"
PARTS = ("text_encoder", "image_encoder", "prior", "decoder", "super_res_first", "super_res_last")
STEPS = {"prior": 25, "decoder": 25, "super_res": 7}
GUIDANCE = {"prior": 4.0, "decoder": 8.0}
SCHEDULERS = {
    "prior": ("fixed_small_log", "sample", 5.0), "decoder": ("learned_range", "epsilon", 1.0),
    "super_res": ("fixed_small_log", "epsilon", 1.0),
}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


def settings(tiny: bool) -> dict[str, dict[str, Any]]:
    """What each part's class is built with, at Karlo's size or a small one."""
    dim, width, head = (32, 32, 16) if tiny else (768, 320, 64)
    levels = (width, 2 * width) if tiny else (320, 640, 960, 1280)
    further = len(levels) - 1
    unet = {"block_out_channels": levels, "layers_per_block": 2 if tiny else 3, "norm_num_groups": 8 if tiny else 32}
    large = unet | {
        "in_channels": 6, "out_channels": 3, "sample_size": 32 if tiny else 256, "add_attention": False,
        "down_block_types": ("ResnetDownsampleBlock2D",) * len(levels),
        "up_block_types": ("ResnetUpsampleBlock2D",) * len(levels),
    }  # fmt: skip
    tower = {"num_hidden_layers": 2 if tiny else 12, "num_attention_heads": 4 if tiny else 12, "projection_dim": dim}
    return {
        "prior": {
            "num_attention_heads": 4 if tiny else 32, "attention_head_dim": 8 if tiny else 64,
            "num_layers": 2 if tiny else 20, "embedding_dim": dim, "num_embeddings": 77, "additional_embeddings": 4,
        },
        "decoder": unet | {
            "sample_size": 16 if tiny else 64, "in_channels": 3, "out_channels": 6, "attention_head_dim": head,
            "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * further),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * further, "ResnetUpsampleBlock2D"),
            "cross_attention_dim": 2 * dim, "class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift",
        },
        "text_proj": {"clip_embeddings_dim": dim, "time_embed_dim": 4 * width, "cross_attention_dim": 2 * dim},
        "super_res_first": large,
        "super_res_last": large | {"sample_size": None},
        "text_encoder": tower | {
            "vocab_size": 600 if tiny else 49408, "hidden_size": dim, "intermediate_size": 4 * dim,
            "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2,
        },
        "image_encoder": tower | {
            "hidden_size": 32 if tiny else 1024, "intermediate_size": 64 if tiny else 4096,
            "num_hidden_layers": 2 if tiny else 24, "num_attention_heads": 4 if tiny else 16,
            "image_size": 16 if tiny else 224, "patch_size": 8 if tiny else 14,
        },
    }  # fmt: skip


def classes() -> dict[str, Any]:
    """The public class of each part."""
    from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    return {
        "prior": PriorTransformer, "decoder": UNet2DConditionModel, "text_proj": UnCLIPTextProjModel,
        "super_res_first": UNet2DModel, "super_res_last": UNet2DModel, "text_encoder": CLIPTextModelWithProjection,
        "image_encoder": CLIPVisionModelWithProjection,
    }  # fmt: skip


def build(folder: Path, *, tiny: bool) -> None:
    """Writes the checkpoint part by part, and only those parts that aren't there."""
    from diffusers import UnCLIPScheduler

    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, values) in enumerate(settings(tiny).items()):
        if not (folder / name).exists():
            say(f"building {name} ...")
            torch.manual_seed(seed)
            aside = folder / f".{name}"
            shutil.rmtree(aside, ignore_errors=True)
            _build_part(name, values, aside)
            aside.rename(folder / name)
    if not (folder / "tokenizer").exists():
        karlo_rig.tokenizer(folder / "words", context=77).save_pretrained(folder / "tokenizer")
    for stage, (variance, prediction, reach) in SCHEDULERS.items():
        scheduler = UnCLIPScheduler(variance_type=variance, prediction_type=prediction, clip_sample_range=reach)
        scheduler.save_pretrained(folder / f"{stage}_scheduler")
    homes = {"text_encoder": "transformers", "text_proj": "unclip"}
    named = {
        name: [homes.get(name, "diffusers"), cls.__name__] for name, cls in classes().items() if name != "image_encoder"
    }
    named |= {f"{stage}_scheduler": ["diffusers", "UnCLIPScheduler"] for stage in SCHEDULERS}
    index = {"_class_name": "UnCLIPPipeline", **named, "tokenizer": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


@torch.no_grad()
def _build_part(name: str, values: dict[str, Any], folder: Path) -> None:
    cls, folder_is_transformers = classes()[name], name.endswith("_encoder")
    folder.mkdir()
    if folder_is_transformers:
        config = cls.config_class(**values)
        model = cls(config)
        config.save_pretrained(folder)
    else:
        model = cls(**values)
        model.save_config(folder)
    karlo_rig.randomise(model)
    if name == "prior":
        model.clip_std.copy_(0.5 + torch.rand_like(model.clip_std))
    write(folder / ("model.safetensors" if folder_is_transformers else WEIGHTS), model.state_dict())


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, tensor by tensor: the library's own writer would hold all of them twice."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(memoryview(tensor.float().contiguous().numpy()).cast("B"))


def their_pipeline(folder: Path) -> Any:
    """diffusers' own, in float32."""
    from diffusers import UnCLIPPipeline
    from diffusers.pipelines.deprecated.unclip import text_proj

    sys.modules["unclip"] = text_proj  # the published index names a module of that name
    pipeline = UnCLIPPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True, eq=False)
class Given:
    """What the parts are given: the empty caption and the prompt, and random embeddings and pictures."""

    ids: Tensor
    mask: Tensor
    embeds: Tensor
    states: Tensor
    z: Tensor
    small: Tensor
    large: Tensor
    t: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, folder: Path) -> "Given":
        """For a checkpoint, whose text encoder is read for it."""
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77)
        rows = tokenizer(["", PROMPT], padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        text = classes()["text_encoder"].from_pretrained(folder / "text_encoder").eval()(rows.input_ids)
        configs = [json.loads((folder / part / "config.json").read_text()) for part in ("decoder", "super_res_first")]
        low, high = (config["sample_size"] for config in configs)
        noise = torch.Generator().manual_seed(0)
        small = torch.randn(2, 3, low, low, generator=noise)
        large = torch.randn(1, 3, high, high, generator=noise)
        z = torch.randn(text.text_embeds.shape, generator=noise)
        mask = rows.attention_mask.bool()
        return cls(
            rows.input_ids, mask, text.text_embeds, text.last_hidden_state, z, small.clamp(-1, 1), large,
            torch.tensor([9, 500]),
        )  # fmt: skip

    @property
    def enlarged(self) -> Tensor:
        """The second small picture at the size of the large one."""
        size = self.large.shape[-2:]
        return F.interpolate(self.small[1:], size=size, mode="bicubic", align_corners=False, antialias=True)

    def seen(self, size: int) -> Tensor:
        """A picture for CLIP, in [-1, 1]."""
        return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def theirs(
    name: str, folder: Path, dtype: torch.dtype, given: Given, *, guided: bool = False
) -> Callable[[], Tensor]:
    """A forward of one of their parts; guided: with all rows at one timestep, as their pipeline calls it."""
    model = classes()[name].from_pretrained(folder / name, torch_dtype=dtype).eval()
    t = given.t[1].expand(2) if guided else given.t
    embeds, states, z, small, large, enlarged = (
        x.to(dtype) for x in (given.embeds, given.states, given.z, given.small, given.large, given.enlarged)
    )
    if name == "text_encoder":
        return lambda: model(given.ids).text_embeds
    if name == "image_encoder":
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        pixels = ((given.seen(model.config.image_size) + 1) / 2 - mean) / std
        return lambda: model(pixels.to(dtype)).image_embeds
    if name == "prior":
        return lambda: model(
            z, t, proj_embedding=embeds, encoder_hidden_states=states, attention_mask=given.mask
        ).predicted_image_embedding
    if name == "decoder":
        project = classes()["text_proj"].from_pretrained(folder / "text_proj", torch_dtype=dtype).eval()
        with torch.no_grad():
            context, added = project(
                image_embeddings=z, prompt_embeds=embeds, text_encoder_hidden_states=states,
                do_classifier_free_guidance=False,
            )  # fmt: skip
        mask = F.pad(given.mask, (4, 0), value=True)
        return lambda: model(
            small, t, encoder_hidden_states=context, class_labels=added, attention_mask=mask
        ).sample
    both = torch.cat([large, enlarged], dim=1)
    return lambda: model(both, t[1:]).sample


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
