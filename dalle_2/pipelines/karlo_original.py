"""Karlo as its own repository stored it, three .ckpt files and one of statistics -> a `DALLe2` of our own modules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle_2.errors import CheckpointError
from dalle_2.models.clip import CLIP, CLIPConfig
from dalle_2.models.clip_loading import load_clip
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.placement import Placement
from dalle_2.models.prior import PriorConfig
from dalle_2.models.turns import MadeOnce
from dalle_2.pipelines.karlo import KarloParts, pipeline_of
from dalle_2.published import KARLO_CLIP
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.weights import karlo_original as names
from dalle_2.weights.checkpoint import unpickled
from dalle_2.weights.layout import Pair

FILES = {
    "prior": "prior-ckpt*.ckpt",
    "decoder": "decoder-ckpt*.ckpt",
    "super_res": "improved-sr-ckpt*.ckpt",
    "statistics": "ViT-L-14_stats.th",
}
PREFIXES = {"super_res_first": "model_first_steps.", "super_res_last": "model_last_step."}

_WIDTHS = [320, 640, 960, 1280]
_UNET: dict[str, Any] = {"block_out_channels": _WIDTHS, "layers_per_block": 3, "norm_num_groups": 32}
_SUPER_RES = _UNET | {
    "in_channels": 6, "out_channels": 3, "sample_size": 256,
    "down_block_types": ["ResnetDownsampleBlock2D"] * 4, "up_block_types": ["ResnetUpsampleBlock2D"] * 4,
}  # fmt: skip
# The files say nothing of their networks' shapes: these are the published ones, in the words of diffusers' layout.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "prior": {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20, "embedding_dim": 768},
    "decoder": _UNET | {
        "sample_size": 64, "out_channels": 6, "attention_head_dim": 64, "cross_attention_dim": 1536,
        "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    },
    "text_proj": {"clip_embeddings_dim": 768, "time_embed_dim": 1280, "cross_attention_dim": 1536},
    "super_res_first": _SUPER_RES,
    "super_res_last": _SUPER_RES,
    # Its own code keeps the prior's guesses within 10, diffusers within 5.
    "prior_scheduler": {"prediction_type": "sample", "clip_sample_range": 10.0},
    "decoder_scheduler": {"variance_type": "learned_range"},
    "super_res_scheduler": {},
}  # fmt: skip


def load_karlo_original(
    folder: str | Path,
    clip: str | Path = KARLO_CLIP,
    *,
    placement: Placement | None = None,
    configs: Mapping[str, Mapping[str, Any]] = PUBLISHED,
) -> DALLe2:
    """A pipeline of the files that Karlo's repository links to.

    clip: OpenAI's ViT-L/14 in the Hugging Face layout, a folder or a hub id. configs: of networks of another size.
    Raises CheckpointError for a file that is missing there twice or not at all, damaged, or of other networks, and as
    `load_clip` does.
    """
    parts = OriginalParts(Path(folder), clip, configs, placement)
    parts.check()
    return pipeline_of(parts)


class OriginalParts(KarloParts):
    """The parts as ours, from these files. CLIP stays in memory."""

    def __init__(
        self, folder: Path, clip: str | Path, configs: Mapping[str, Mapping[str, Any]], placement: Placement | None
    ) -> None:
        super().__init__(folder, placement)
        self.source, self.configs = clip, configs

    def check(self) -> None:
        """Raises CheckpointError for a file that isn't there, or there twice."""
        for name in FILES:
            self.file(name)

    def has(self, name: str) -> bool:
        """All of them are there."""
        return True

    def file(self, name: str) -> Path:
        """The one file of that name."""
        found = sorted(self.folder.glob(FILES[name]))
        if len(found) != 1:
            said = f"holds {len(found)} files" if found else "holds no file"
            raise CheckpointError(f"{self.folder} {said} {FILES[name]}: the {name} of Karlo must be there once")
        return found[0]

    @MadeOnce
    def _loaded(self) -> tuple[CLIP, Tokenizer]:
        model, tokenizer = load_clip(self.source)
        if not isinstance(model, CLIP) or not isinstance(tokenizer, Tokenizer):
            raise CheckpointError(f"{self.source} is no CLIP in the Hugging Face layout, whose text states Karlo needs")
        model.config = model.config.model_copy(update={"normalised": False})
        return model.to(self.device).eval().requires_grad_(False), tokenizer

    @MadeOnce
    def clip(self) -> CLIP:
        """Both towers."""
        return self._loaded[0]

    @MadeOnce
    def tokenizer(self) -> Tokenizer:
        """CLIP's."""
        return self._loaded[1]

    @MadeOnce
    def clip_config(self) -> CLIPConfig:
        """The towers' settings."""
        return self.clip.config

    def config(self, part: str) -> dict[str, Any]:
        """A part's settings, which are known and not read."""
        shared = {"num_embeddings": self.text.context_length} if part == "prior" else {}
        return {**shared, **self.configs[part]}

    def tensors(self, part: str) -> dict[str, Tensor]:
        """A part's tensors, by their own names. Raises CheckpointError."""
        tensors = self._state("super_res" if part in PREFIXES else part)
        if part in PREFIXES:
            return {name: x for name, x in tensors.items() if name.startswith(PREFIXES[part])}
        return tensors | (self._statistics() if part == "prior" else {})

    def files(self, part: str) -> list[Path]:
        """The files that `tensors` reads."""
        names = ("prior", "statistics") if part == "prior" else ("super_res" if part in PREFIXES else part,)
        return [self.file(name) for name in names]

    def _state(self, name: str) -> dict[str, Tensor]:
        path = self.file(name)
        content = unpickled(path)
        state = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} is no checkpoint of Karlo: it has no state_dict")
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}

    def _statistics(self) -> dict[str, Tensor]:
        path = self.file("statistics")
        content = unpickled(path)
        match content:
            case (Tensor() as mean, Tensor() as std):
                return {"clip_mean": mean, "clip_std": std}
        raise CheckpointError(f"{path} doesn't hold a mean and a spread of embeddings")

    def _prior_pairs(self, config: PriorConfig) -> list[Pair]:
        return names.prior_pairs(config.depth, config.width // config.heads)

    def _decoder_pairs(self, unet: DecoderUNetConfig) -> list[Pair]:
        shape = (len(unet.multiples), unet.blocks, unet.attention, unet.middle_attention, unet.head_channels)
        return [*names.unet_pairs(*shape), *names.text_pairs(unet.context_tokens, unet.context_width)]

    def _upsampler_pairs(self, part: str, unet: DecoderUNetConfig) -> list[Pair]:
        return names.unet_pairs(len(unet.multiples), unet.blocks, (), False, unet.head_channels, PREFIXES[part])
