"""CLIP (Radford et al. 2021): an image tower and a text tower that meet in one embedding space.

Additions serve small training sets, all off by default: a convolutional stem (Xiao et al. 2021), a pool over the grid
of patches, centred embeddings, and side tasks that ask each embedding which phrases the caption holds and what the
picture looks like from afar.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.config import Settings, parse
from dalle_2.errors import UsageError
from dalle_2.models.layers.grid_pool import GridPool
from dalle_2.models.layers.init import normal
from dalle_2.models.layers.side_tasks import SideTasks
from dalle_2.models.layers.stem import conv_stem, patch_stem
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer, TowerConfig, transformer_of
from dalle_2.models.precision import MixedPrecision, buildable, in_own_precision, readable
from dalle_2.models.rest import at_work

# Brings all losses to the same order: a caption's phrases cost a hundred nats, a thumbnail a tenth.
SIDE_WEIGHTS = {"phrases_image": 0.025, "phrases_text": 0.025, "thumbnail": 20.0, "thumbnail_text": 10.0}
MAX_LOGIT_SCALE = 100.0  # CLIP, section 2.5: larger temperatures make training unstable


# Of a channel of pictures in [0, 1].
Mean = Annotated[float, Field(ge=-bounds.FACTOR, le=bounds.FACTOR)]
Spread = Annotated[float, Field(ge=1 / bounds.FACTOR, le=bounds.FACTOR)]


class VisionConfig(TowerConfig):
    """The image tower. stem: patches come from one linear map, or from convolutions with `stem_blocks` residual blocks.

    pool: the embedding is read from a class token, or from all patches, see `GridPool`; "grid_mean" is the grid of
    format 1, for weights that were trained with it. mean and std normalise pictures in [0, 1]; the defaults leave
    [-1, 1] as it is.
    """

    width: int = Field(160, ge=1, le=bounds.WIDTH)
    depth: int = Field(4, ge=0, le=bounds.DEPTH)
    heads: int = Field(5, ge=1, le=bounds.WIDTH)
    image_size: int = Field(64, ge=1, le=bounds.SIDE)
    patch: int = Field(8, ge=1, le=bounds.SIDE)
    stem: Literal["patch", "conv"] = "patch"
    stem_blocks: int = Field(0, ge=0, le=bounds.DEPTH)
    pool: Literal["class", "grid", "grid_mean"] = "class"
    mean: tuple[Mean, Mean, Mean] = (0.5, 0.5, 0.5)
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        if self.stem == "conv" and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise ValueError(f"a conv stem halves the picture, so patch must be 2, 4, 8, ..., got {self.patch}")
        return self


class CLIPConfig(Settings):
    """A whole CLIP; vision None leaves the image tower out.

    normalised: whether its embeddings are meant to be used at unit length.

    centred: embeddings are brought to mean 0 and variance 1 in every dimension (by running statistics) before they get
    unit length, so that a narrow data set does not end in a narrow cone.
    phrases, thumbnail: the side tasks' sizes, see `SideTasks`; 0 for none. side_weight: their share in the loss.
    """

    vision: VisionConfig | None = VisionConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = Field(512, ge=1, le=bounds.WIDTH)
    logit_scale: float = Field(1 / 0.07, gt=0, le=MAX_LOGIT_SCALE)
    normalised: bool = True
    centred: bool = False
    phrases: int = Field(0, ge=0, le=bounds.HIDDEN)
    thumbnail: int = Field(0, ge=0, multiple_of=8, le=bounds.SIDE)
    side_weight: float = Field(1.0, ge=0, le=bounds.FACTOR)


class VisionTower(MixedPrecision):
    """A vision transformer, read at its class token or over its whole grid."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        width, scale = config.width, config.width**-0.5
        convolves = config.stem == "conv"
        stem = conv_stem(config.patch, width, config.stem_blocks) if convolves else patch_stem(config.patch, width)
        self.stem = stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        patches, classes = (config.image_size // config.patch) ** 2, int(config.pool == "class")
        self.class_token = normal(width, std=scale) if classes else None
        self.positions = normal(patches + classes, width, std=scale)
        self.norm_in = nn.LayerNorm(width, eps=config.eps)
        self.transformer = transformer_of(config, causal=False)
        self.norm_out = nn.LayerNorm(width, eps=config.eps)
        self.projection = (
            _projection(width, embed_dim)
            if classes
            else GridPool(width, patches, embed_dim, most=config.pool == "grid")
        )
        for name, values in (("mean", config.mean), ("std", config.std)):
            channels = torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    @in_own_precision
    def forward(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        x = ((x + 1) / 2 - self.mean) / self.std
        tokens = rearrange(self.stem(x), "b w h v -> b (h v) w")
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.to(tokens.dtype).expand(len(x), 1, -1), tokens], dim=1)
        states = self.transformer(self.norm_in(tokens + self.positions))
        return self.projection(self.norm_out(states if self.class_token is None else states[:, 0]))


class TextTower(TextTransformer):
    """A text transformer that reads its end token, so whatever follows that has no influence."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__(config)
        self.projection = _projection(config.width, embed_dim)

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        states = self.states(tokens)
        ends = self.ends(tokens)
        return self.projection(states[torch.arange(len(tokens), device=tokens.device), ends])


class Centre(nn.BatchNorm1d):
    """Embeddings brought to mean 0 and variance 1 in every dimension, by statistics that run along in training.

    A batch of one row, such as the last of an epoch, has no variance: the statistics so far stand in, and stay.
    """

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        assert self.running_mean is not None
        x = x.to(self.running_mean.dtype)
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(x)


class CLIP(MixedPrecision):
    """Images in [-1, 1] and token rows to embeddings, and the loss that trains both towers."""

    kind = "clip"

    @buildable
    def __init__(self, config: CLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CLIPConfig()
        self.vision = VisionTower(config.vision, config.embed_dim) if config.vision else None
        self.text = TextTower(config.text, config.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.centre_image = _centre(config)
        self.centre_text = _centre(config)
        asks = config.phrases or config.thumbnail
        self.side = SideTasks(config.embed_dim, phrases=config.phrases, thumbnail=config.thumbnail) if asks else None

    @classmethod
    def from_config(cls, config: CLIPConfig | Mapping[str, Any]) -> Self:
        """Raises ConfigError for settings that don't fit."""
        return cls(config if isinstance(config, CLIPConfig) else parse(CLIPConfig, config, where="clip"))

    @property
    def image_size(self) -> int:
        """Of the pictures that it reads. Raises UsageError for a CLIP without an image tower."""
        if self.config.vision is None:
            raise UsageError("this CLIP reads texts only, it has no image tower: use a pipeline that has one")
        return self.config.vision.image_size

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @property
    def normalised(self) -> bool:
        return self.config.normalised

    def encode_image(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Raw embeddings of pictures in [-1, 1]. Raises UsageError for another size than image_size."""
        if self.vision is None or x.shape[-1] != self.image_size:
            raise UsageError(
                f"got pictures of {x.shape[-1]} px, this CLIP reads {self.image_size} px: resize them first"
            )
        with at_work(self, self.vision):
            return self.centre_image(self.vision(x).float()).float()

    def encode_text(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Raw embeddings of token rows. Raises UsageError for rows longer than the context."""
        with at_work(self, self.text):
            return self.centre_text(self.text(self.text.trimmed(tokens)).float()).float()

    def text_states(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l w"]:
        """The text tower's last hidden states, after the final norm, one a token."""
        return self.text.states(tokens)

    def forward(
        self, image: Float[Tensor, "b 3 s s"], tokens: Int[Tensor, "b l"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"], Float[Tensor, ""]]:
        """Raw image embeddings, raw text embeddings, and the factor of their cosines."""
        return self.encode_image(image), self.encode_text(tokens), self.log_scale.exp()

    def noised(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """CLIP learns from clean pairs."""
        return batch

    def without_side_tasks(self) -> "CLIP":
        """The same towers without the heads that only training needs; the weights are shared, not copied."""
        lean = CLIP(self.config.model_copy(update={"phrases": 0, "thumbnail": 0}))
        kept = {name: value for name, value in self.state_dict().items() if not name.startswith("side.")}
        lean.load_state_dict(kept, assign=True)
        lean.provenance = getattr(self, "provenance", None)  # type: ignore[assignment]
        return lean.eval()

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """batch: "image" (B,3,S,S) in [-1,1], "tokens" (B,L).

        Gives "loss", and for the log "contrastive" (CLIP, figure 3), "accuracy" of retrieval inside the
        batch, and what the side tasks report.
        """
        batch = readable(batch, self)
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        tokens = self.text.trimmed(batch["tokens"])
        raw_image, raw_text, scale = self(batch["image"], tokens)
        # A cosine near 1 has no digits left in half precision.
        with torch.autocast(tokens.device.type, enabled=False):
            z_img, z_txt = F.normalize(raw_image.float(), dim=-1), F.normalize(raw_text.float(), dim=-1)
            parts = contrastive(z_img, z_txt, scale.float(), same_text(tokens))
        loss = parts["contrastive"]
        if self.side is not None:
            side = self.side.losses(z_img, z_txt, batch["image"], tokens, self.text.ends(tokens))
            loss = loss + self.config.side_weight * sum(SIDE_WEIGHTS[name] * part for name, part in side.items())
            parts |= side
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


def same_text(tokens: Int[Tensor, "b l"]) -> Bool[Tensor, "b b"]:
    """True where two rows are the same caption."""
    ids = torch.unique(tokens, dim=0, return_inverse=True)[1]
    return ids[:, None] == ids[None, :]


def contrastive(
    z_img: Float[Tensor, "b d"],
    z_txt: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    same: Bool[Tensor, "b b"],
) -> dict[str, Tensor]:
    """The symmetric cross entropy of CLIP's figure 3, for embeddings of unit length.

    Pairs whose captions are `same` are no negatives of each other: they leave the sum.
    """
    logits = scale * z_img @ z_txt.T
    target = torch.arange(len(logits), device=logits.device)
    others = same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(others, -math.inf)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    right = torch.cat([logits.argmax(0) == target, logits.argmax(1) == target])
    return {"contrastive": loss, "accuracy": right.float().mean()}


def _centre(config: CLIPConfig) -> nn.Module:
    return Centre(config.embed_dim, affine=False) if config.centred else nn.Identity()


def _projection(width: int, embed_dim: int) -> nn.Linear:
    layer = nn.Linear(width, embed_dim, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    return layer
