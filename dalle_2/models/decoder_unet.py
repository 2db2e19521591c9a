"""The ADM/GLIDE U-Net: one network for the decoder and, with other settings, for the upsamplers."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple, Self

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.config import Settings
from dalle_2.errors import UsageError
from dalle_2.models.layers.init import zeroed
from dalle_2.models.layers.residual import Downsample, Resample, ResidualBlock, Upsample, group_norm, silu
from dalle_2.models.layers.spatial_attention import KeysValues, SpatialAttention, heads_of
from dalle_2.models.precision import MixedPrecision, buildable, in_own_precision


class DecoderUNetConfig(Settings):
    """Widths and depths of the U-Net. By default it is one that trains on a processor; `large` is the other.

    `patch` folds squares of pixels into channels before the first level and unfolds them after the last
    (Hoogeboom et al. 2023, section 2.3): most of the cost of a small U-Net lies at full resolution.
    `attention` holds the levels (0 is the finest) that attend. `low_res_channels` are the channels of a second
    picture that is stacked under the noised one (the upsampler's condition).

    `known_channels` are stacked under both: what is kept of a picture that is painted into, and where. `text_dim` is
    the width of encoded captions, which attention may look at and whose end is added to the time embedding; 0 for none.

    `z_map_channels` stacks a coarse map of `z_map_side` squares a side, projected from the image embedding, under the
    input. It served before decoders had a draft (see `Draft`), and is kept for those that were trained with it.

    `resample`: levels are joined by plain convolutions, or by residual blocks as in ADM, GLIDE and the paper.

    What published weights have otherwise: `z_dim` 0, no embedding at all; `context_dim`, the width of the tokens that
    attention looks at, 0 for that of the time embedding; `pooled_dim`, the width of a projection of the caption's end
    before it is added, 0 for none; `norm_text`, a norm on the caption's tokens; `text_projection` False, where
    attention looks at the caption's states as they are; `groups` of every group norm.

    `carry` adds the noised picture and the second one to the output, each times a factor learned from the time
    embedding: a network that predicts clean pictures then has only to correct what it is given, the second picture
    where there is much noise and the noised one where little is left.
    """

    channels: int = Field(default=32, ge=1, le=bounds.WIDTH)
    multiples: tuple[Annotated[int, Field(ge=1, le=bounds.FEW)], ...] = Field((1, 2, 4, 4), max_length=bounds.LEVELS)
    blocks: int = Field(default=1, ge=1, le=bounds.BLOCKS)
    attention: tuple[int, ...] = Field((2, 3), max_length=bounds.LEVELS)
    middle_attention: bool = True
    head_channels: int = Field(default=32, ge=1, le=bounds.WIDTH)
    patch: int = Field(default=1, ge=1, le=bounds.FEW)
    out_channels: int = Field(default=3, ge=1, le=bounds.WIDTH)
    low_res_channels: int = Field(default=0, ge=0, le=bounds.WIDTH)
    known_channels: int = Field(default=0, ge=0, le=bounds.WIDTH)
    text_dim: int = Field(default=0, ge=0, le=bounds.WIDTH)
    pooled_dim: int = Field(default=0, ge=0, le=bounds.WIDTH)
    norm_text: bool = False
    text_projection: bool = True
    z_dim: int = Field(default=512, ge=0, le=bounds.WIDTH)
    t_dim: int = Field(default=512, ge=1, le=bounds.HIDDEN)
    context_tokens: int = Field(default=4, ge=0, le=bounds.FEW)
    context_dim: int = Field(default=0, ge=0, le=bounds.HIDDEN)
    groups: int | None = Field(default=None, ge=1, le=bounds.WIDTH)
    z_map_channels: int = Field(default=0, ge=0, le=bounds.WIDTH)
    z_map_side: int = Field(default=16, ge=1, le=bounds.SIDE)
    scale_shift: bool = True
    resample: Literal["conv", "residual"] = "conv"
    carry: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("multiples")
    @classmethod
    def _some_level(cls, multiples: tuple[int, ...]) -> tuple[int, ...]:
        if not multiples:
            raise ValueError("a U-Net needs at least one level; give one multiple a level, e.g. [1, 2, 4]")
        return multiples

    @model_validator(mode="after")
    def _levels_exist(self) -> "DecoderUNetConfig":
        wrong = [level for level in self.attention if not 0 <= level < len(self.multiples)]
        if wrong:
            raise ValueError(f"attention names level {wrong[0]}, but the levels are 0 to {len(self.multiples) - 1}")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "DecoderUNetConfig":
        attending = {*self.attention, *([len(self.multiples) - 1] if self.middle_attention else [])}
        for width in (self.channels * self.multiples[level] for level in sorted(attending)):
            if width % heads_of(width, self.head_channels):
                raise ValueError(f"a level of {width} channels can't attend in heads of {self.head_channels}")
        return self

    @model_validator(mode="after")
    def _groups_divide_width(self) -> "DecoderUNetConfig":
        if self.groups is not None and self.channels % self.groups:
            raise ValueError(f"channels {self.channels} must be a multiple of groups {self.groups}")
        return self

    @model_validator(mode="after")
    def _has_what_it_projects(self) -> "DecoderUNetConfig":
        if not self.z_dim and (self.context_tokens or self.z_map_channels):
            raise ValueError("context_tokens and z_map_channels are made of the embedding: z_dim 0 leaves them 0")
        if not self.text_dim and (self.pooled_dim or self.norm_text):
            raise ValueError("pooled_dim and norm_text are for captions: text_dim 0 leaves them out")
        if self.text_dim != self.context_width and not self.text_projection:
            raise ValueError(f"without text_projection context_dim must be text_dim, {self.text_dim}")
        return self

    @model_validator(mode="after")
    def _carries_what_it_predicts(self) -> "DecoderUNetConfig":
        if self.carry and (self.out_channels not in (3, 6) or self.low_res_channels not in (0, 3)):
            raise ValueError(
                "carry adds pictures to the output: out_channels must be 3 or 6 and low_res_channels 0 or 3, "
                f"got {self.out_channels} and {self.low_res_channels}"
            )
        return self

    @classmethod
    def large(cls) -> Self:
        """A hundred million weights, for a graphics card: a step of two pictures of 64 px takes a processor seconds."""
        return cls(channels=128, multiples=(1, 2, 3, 4), blocks=2, head_channels=64)

    @property
    def factor(self) -> int:
        """What height and width of a picture must be divisible by."""
        return int(self.patch * 2 ** (len(self.multiples) - 1))

    def rows_at_once(self, height: int, width: int, numbers: int) -> int:
        """How many pictures of that size one call may see with no more than so many numbers in its first map."""
        return max(1, numbers // (self.channels * height * width // self.patch**2))

    @property
    def context_width(self) -> int:
        """Of a token that attention looks at."""
        return self.context_dim or self.t_dim


class Block(nn.Module):
    """A residual block and, on levels that attend, an attention block."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        config: DecoderUNetConfig,
        attends: bool,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(
            channels, out_channels, config.t_dim,
            scale_shift=config.scale_shift, dropout=config.dropout, resample=resample, groups=config.groups,
        )  # fmt: skip
        context = config.context_width if config.context_tokens or config.text_dim else None
        attention = SpatialAttention(out_channels, config.head_channels, context, config.groups) if attends else None
        self.attention = attention

    def forward(
        self,
        x: Float[Tensor, "b c h w"] | list[Float[Tensor, "b _ h w"]],
        embedding: Float[Tensor, "b e"],
        context: KeysValues | None,
        valid: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b c2 h2 w2"]:
        """x: as a `ResidualBlock` takes it."""
        h = self.residual(x, embedding)
        if self.attention is None:
            return h
        if valid is None:
            return self.attention(h, context)
        positions = valid.new_ones(len(h), h.shape[2] * h.shape[3])
        return self.attention(h, context, torch.cat([valid, positions], dim=1)[:, None, None])


class Told(NamedTuple):
    """What a U-Net makes of its condition, whatever the step.

    embedding: what is added to the time embedding. context: for each `Block`, in the order they are gone through, the
    keys and values of the tokens that it looks at. valid: False at tokens that are padding, None where none is.
    """

    embedding: Float[Tensor, "b e"] | float
    context: list[KeysValues | None]
    valid: Bool[Tensor, "b m"] | None


class DecoderUNet(MixedPrecision):
    """Predicts the configured target of a noised picture, given an image embedding and a time embedding.

    The image embedding is projected and added to the time embedding, and projected to `context_tokens` tokens
    that every attention block may look at, followed by those of the caption (DALL·E 2 paper, section 2.1; GLIDE,
    section 3.1).
    """

    @buildable
    def __init__(self, config: DecoderUNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DecoderUNetConfig()
        widths = [config.channels * multiple for multiple in config.multiples]
        folded = config.patch**2
        tokens, width, text = config.context_tokens, config.context_width, config.text_dim
        self.null_z = nn.Parameter(torch.zeros(config.z_dim)) if config.z_dim else None
        self.embed_z = nn.Linear(config.z_dim, config.t_dim) if config.z_dim else None
        self.context = nn.Linear(config.z_dim, tokens * width) if tokens else None
        self.pool_text = nn.Linear(text, config.pooled_dim, bias=False) if config.pooled_dim else None
        self.embed_text = nn.Linear(config.pooled_dim or text, config.t_dim) if text else None
        self.context_text = (nn.Linear(text, width) if config.text_projection else nn.Identity()) if text else None
        self.norm_text = nn.LayerNorm(width) if config.norm_text else None
        mapped = config.z_map_channels
        self.z_map = nn.Linear(config.z_dim, mapped * config.z_map_side**2) if mapped else None
        pictures = 3 + config.low_res_channels + config.known_channels
        self.conv_in = nn.Conv2d(folded * pictures + mapped, widths[0], 3, padding=1)

        self.down, skips = nn.ModuleList(), [widths[0]]
        width = widths[0]
        for level, target in enumerate(widths):
            if level:
                self.down.append(_resampling(width, config, "down"))
                skips.append(width)
            for _ in range(config.blocks):
                self.down.append(Block(width, target, config, level in config.attention))
                skips.append(width := target)

        self.middle = nn.ModuleList(
            [Block(width, width, config, config.middle_attention), Block(width, width, config, False)]
        )

        self.up = nn.ModuleList()
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(width + skips.pop(), target, config, level in config.attention))
                width = target
            if level:
                self.up.append(_resampling(width, config, "up"))

        self.norm_out = group_norm(width, config.groups)
        self.conv_out = zeroed(nn.Conv2d(width, folded * config.out_channels, 3, padding=1))
        self.carry = _carry(config) if config.carry else None
        self.remakes = False  # the finest level's maps when they are joined again, rather than keeping them

    @in_own_precision
    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        z_img: Float[Tensor, "b {self.config.z_dim}"] | None,
        t_emb: Float[Tensor, "b {self.config.t_dim}"],
        *,
        low_res: Float[Tensor, "b k h w"] | None = None,
        known: Float[Tensor, "b k2 h w"] | None = None,
        states: Float[Tensor, "b l {self.config.text_dim}"] | None = None,
        valid: Bool[Tensor, "b l"] | None = None,
        told: Told | None = None,
    ) -> Float[Tensor, "b {self.config.out_channels} h w"]:
        """z_img: None for a network that takes none. `low_res` and `known` have the height and width of `x_t`; each is
        wanted exactly when the settings name channels for it. states, valid: encoded captions, and False at their
        padding; both or neither, and only with `text_dim`. told: what `tell` said of z_img, states and valid.

        Raises UsageError for sides that aren't divisible by `config.factor`, and for other pictures than that.
        """
        self._check(x_t, {"low_res": low_res, "known": known})
        told = told or self.tell(z_img, states, valid)

        pictures = [x_t] if low_res is None else [x_t, low_res]
        stacked = pictures if known is None else [*pictures, known]
        x = F.pixel_unshuffle(torch.cat(stacked, dim=1), self.config.patch)
        if self.z_map is not None and z_img is not None:
            x = torch.cat([x, self._mapped(self.z_map(z_img), x)], dim=1)
        folded = x.contiguous(memory_format=torch.channels_last)
        x = self._gone_through(folded, F.silu(t_emb + told.embedding), told)
        x = self.conv_out(silu(self.norm_out(x)))
        x = F.pixel_shuffle(x, self.config.patch)
        if self.carry is not None:
            factors = self.carry(F.silu(t_emb)).unflatten(1, (-1, 1, 1, 1))
            carried = (factors * torch.stack(pictures, dim=1)).sum(1)
            x = torch.cat([x[:, :3] + carried, x[:, 3:]], dim=1)
        return x

    def _gone_through(
        self, folded: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"], told: Told
    ) -> Float[Tensor, "b c2 h w"]:
        """Down and up again, from the first convolution to before the last."""
        context = iter(told.context)

        def bound(layer: nn.Module) -> Callable[..., Tensor]:
            if not isinstance(layer, Block):
                return layer
            return partial(layer, embedding=embedding, context=next(context), valid=told.valid)

        down: list[Callable[..., Tensor]] = [self.conv_in, *map(bound, self.down)]
        skips: list[Tensor | None] = []
        x = folded
        for through in down:
            x = through(x)
            finest = len(skips) <= self.config.blocks
            skips.append(None if finest and self.remakes else x)
        for through in map(bound, self.middle):
            x = through(x)
        maps = [x]  # what comes next, which nobody else holds
        del x
        for layer in self.up:
            through = bound(layer)
            if isinstance(layer, Block) and not layer.residual.resample:
                skip = skips.pop()
                maps.append(_remade(folded, down[: len(skips) + 1]) if skip is None else skip)
                del skip
            maps = [through(maps) if isinstance(layer, Block) else through(*maps)]
        return maps.pop()

    @in_own_precision
    def tell(
        self,
        z_img: Float[Tensor, "b {self.config.z_dim}"] | None,
        states: Float[Tensor, "b l {self.config.text_dim}"] | None = None,
        valid: Bool[Tensor, "b l"] | None = None,
    ) -> Told:
        """What `forward` makes of its condition: the same at every step, so that many steps can share it."""
        tokens, seen = self._context(z_img, states, valid)
        layers = [*self.down, *self.middle, *self.up]
        attentions = [block.attention for block in layers if isinstance(block, Block)]
        context = [attention.read(tokens) if attention else None for attention in attentions]
        return Told(self._embedded(z_img) + self._summary(states, valid), context, seen)

    def _check(self, x_t: Tensor, pictures: dict[str, Tensor | None]) -> None:
        height, width = x_t.shape[-2:]
        if height % self.config.factor or width % self.config.factor:
            raise UsageError(f"this U-Net takes sides divisible by {self.config.factor}, got {height} x {width} px")
        for name, picture in pictures.items():
            given, wanted = 0 if picture is None else picture.shape[1], getattr(self.config, f"{name}_channels")
            if given != wanted:
                raise UsageError(f"this U-Net takes {wanted} channels of {name}, got {given}")

    def _embedded(self, z_img: Tensor | None) -> Float[Tensor, "b e"] | float:
        return 0.0 if self.embed_z is None or z_img is None else self.embed_z(z_img)

    def _summary(self, states: Tensor | None, valid: Tensor | None) -> Float[Tensor, "b e"] | float:
        """The state at each caption's end; nothing for a row without a caption."""
        if self.embed_text is None or states is None or valid is None:
            return 0.0
        length = valid.sum(1)
        end = states[torch.arange(len(states), device=states.device), (length - 1).clamp(min=0)]
        if self.pool_text is not None:
            end = self.pool_text(end)
        return self.embed_text(end) * (length > 0).to(states.dtype)[:, None]

    def _context(
        self, z_img: Tensor | None, states: Tensor | None, valid: Tensor | None
    ) -> tuple[Float[Tensor, "b m k"] | None, Bool[Tensor, "b m"] | None]:
        """The tokens that attention may look at beside the picture: the embedding's, then the caption's."""
        tokens = None
        if self.context is not None and z_img is not None:
            tokens = self.context(z_img).unflatten(1, (-1, self.config.context_width))
        if self.context_text is None or states is None or valid is None:
            return tokens, None
        words = self.context_text(states)
        words = words if self.norm_text is None else self.norm_text(words)
        if tokens is None:
            return words, valid
        return torch.cat([tokens, words], dim=1), torch.cat([valid.new_ones(tokens.shape[:2]), valid], dim=1)

    def _mapped(self, flat: Float[Tensor, "b n"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m h w"]:
        """The embedding's map at the height and width of the folded picture."""
        side = self.config.z_map_side
        squares = rearrange(flat, "b (m h w) -> b m h w", h=side, w=side)
        return F.interpolate(squares, size=like.shape[-2:], mode="bilinear").to(like.dtype)


def _remade(x: Tensor, layers: list[Callable[..., Tensor]]) -> Tensor:
    for through in layers:
        x = through(x)
    return x


def _resampling(width: int, config: DecoderUNetConfig, direction: Resample) -> nn.Module:
    """What leads from one level to the next."""
    if config.resample == "residual":
        return Block(width, width, config, attends=False, resample=direction)
    return Downsample(width, width) if direction == "down" else Upsample(width, width)


def _carry(config: DecoderUNetConfig) -> nn.Linear:
    """The factors of the pictures that come in; at first none of the noised one and all of the second."""
    pictures = 1 + config.low_res_channels // 3
    layer = zeroed(nn.Linear(config.t_dim, pictures))
    nn.init.constant_(layer.bias[1:], 1.0)
    return layer
