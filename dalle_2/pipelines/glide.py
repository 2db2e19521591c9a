"""GLIDE's published files, up to four networks and a vocabulary in one folder -> a `Glide` of our own modules."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dalle_2.config import parse
from dalle_2.errors import CheckpointError
from dalle_2.models.glide import PAINTERS, Glide, GlideConfig, GlideModel
from dalle_2.models.unfilled import empty
from dalle_2.pipelines.find import GLIDE, GLIDE_DRAWS, holds_glide
from dalle_2.text.glide_tokenizer import VOCABULARY, GlideTokenizer
from dalle_2.weights.checkpoint import read_tensors
from dalle_2.weights.foreign import fill
from dalle_2.weights.glide_names import glide_pairs
from dalle_2.weights.layout import Pair

TEXT = {
    "width": 512, "depth": 16, "heads": 8, "vocab_size": 50257, "context_length": 128, "pad_id": 50256, "eos_id": 50256,
    "causal": False, "padding": True,
}  # fmt: skip
_UNET = {
    "channels": 192, "t_dim": 768, "head_channels": 64, "groups": 32, "resample": "residual", "out_channels": 6,
    "z_dim": 0, "context_tokens": 0, "context_dim": 512, "text_dim": 512, "text_projection": False, "dropout": 0.1,
}  # fmt: skip
_SMALL: dict[str, Any] = {"multiples": [1, 2, 3, 4], "blocks": 3, "attention": [1, 2, 3]}
_LARGE: dict[str, Any] = {
    "multiples": [1, 1, 2, 2, 4, 4], "blocks": 2, "attention": [3, 4, 5], "low_res_channels": 3,
}  # fmt: skip
_DECODER: dict[str, Any] = {"image_size": 64, "sinusoid": 192, "caption": TEXT, "unet": _UNET | _SMALL}
_UPSAMPLER: dict[str, Any] = {
    "image_size": 256, "low_res_size": 64, "schedule": "linear", "spacing": "fast27", "steps": 27, "guidance": 1.0,
    "temperature": 0.997, "sinusoid": 192, "caption": TEXT, "unet": _UNET | _LARGE,
}  # fmt: skip


def _painting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the network that was trained on to fill holes."""
    return {**config, "unet": config["unet"] | {"known_channels": 4}}


# The files say nothing of their networks' shapes: these are the published ones, as values for `GlideConfig`.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "decoder": _DECODER, "upsampler": _UPSAMPLER,
    PAINTERS["decoder"]: _painting(_DECODER) | {"guidance": 5.0}, PAINTERS["upsampler"]: _painting(_UPSAMPLER),
}  # fmt: skip


def load_glide(
    folder: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    configs: Mapping[str, Mapping[str, Any]] = PUBLISHED,
) -> Glide:
    """A GLIDE of base.pt, upsample.pt, base_inpaint.pt and upsample_inpaint.pt, of which one that draws must be there,
    and of the vocabulary, encoder.json.gz and vocab.bpe.gz. A network is read when it is first used.

    configs: of networks of another size.

    Raises CheckpointError for a folder that lacks something, and when a network is first used for a file that is
    damaged or holds another one.
    """
    folder = Path(folder)
    files = {role: folder / name for role, name in GLIDE.items() if (folder / name).is_file()}
    if not holds_glide(folder):
        raise CheckpointError(f"{folder} holds no GLIDE: expected {' or '.join(GLIDE_DRAWS)} there")
    text = parse(GlideConfig, configs["decoder"]).caption
    tokenizer = GlideTokenizer.from_glide_folder(folder, context_length=text.context_length)
    if tokenizer.vocab_size != text.vocab_size:
        raise CheckpointError(
            f"{VOCABULARY} in {folder} has {tokenizer.vocab_size} tokens, and GLIDE knows {text.vocab_size}: "
            "it is another one's"
        )
    parts = {role: partial(load_glide_model, path, configs[role]) for role, path in files.items()}
    return Glide(tokenizer, parts, device=device, dtype=dtype, name=folder.resolve().name)


@torch.inference_mode(False)
def load_glide_model(path: str | Path, config: Mapping[str, Any]) -> GlideModel:
    """One network of a published file. Raises CheckpointError for one that is damaged, or of other tensors."""
    path = Path(path)
    settings = parse(GlideConfig, config)
    model = empty(lambda: GlideModel(settings))
    fill(model, pairs_of(settings), read_tensors(path), path)
    return model.eval().requires_grad_(False)


def pairs_of(config: GlideConfig) -> list[Pair]:
    """Every tensor of a network beside those of the published file."""
    unet, text = config.unet, config.caption
    return glide_pairs(
        len(unet.multiples), unet.blocks, unet.attention, unet.head_channels, text.depth, text.width // text.heads,
        [3, unet.low_res_channels, unet.known_channels],
    )  # fmt: skip
