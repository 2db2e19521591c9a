"""Caption tokens to states: the text tower of CLIP, and the text encoder of a prior or a decoder."""

from typing import Literal, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from dalle_2 import bounds
from dalle_2.config import Settings
from dalle_2.errors import UsageError
from dalle_2.models.layers.init import normal
from dalle_2.models.layers.transformer import Activation, Transformer


class TowerConfig(Settings):
    """What every transformer over tokens or patches has. mlp_width None means four times the width."""

    width: int = Field(ge=1, le=bounds.WIDTH)
    depth: int = Field(ge=0, le=bounds.DEPTH)
    heads: int = Field(ge=1, le=bounds.WIDTH)
    mlp_width: int | None = Field(None, ge=1, le=bounds.HIDDEN)
    activation: Activation = "gelu"
    eps: float = Field(1e-5, gt=0, le=bounds.FACTOR)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class TextConfig(TowerConfig):
    """A text transformer. pool: a text ends at the first `eos_id`, or at the highest id as in OpenAI's code.

    What GLIDE has otherwise: causal False, words see those after them, too; padding, a row is filled up with learned
    vectors, one a position, which are read like words, so that a text ends where its row ends.
    """

    width: int = Field(160, ge=1, le=bounds.WIDTH)
    depth: int = Field(3, ge=0, le=bounds.DEPTH)
    heads: int = Field(5, ge=1, le=bounds.WIDTH)
    vocab_size: int = Field(4096, ge=1, le=bounds.VOCABULARY)
    context_length: int = Field(32, ge=2, le=bounds.CONTEXT)
    pad_id: int = Field(0, ge=0, le=bounds.TOKEN)
    eos_id: int = Field(2, ge=0, le=bounds.TOKEN)
    pool: Literal["eos", "highest"] = "eos"
    causal: bool = True
    padding: bool = False


class TextStates(NamedTuple):
    """Encoded captions: a state a token, and False where a row is padding. A row that is all padding has no caption."""

    states: Float[Tensor, "b l w"]
    valid: Bool[Tensor, "b l"]

    def without(self, dropped: Bool[Tensor, "b"]) -> "TextStates":
        """The same, with the captions of the dropped rows taken away."""
        return TextStates(self.states, self.valid & ~dropped[:, None])


class TextTransformer(nn.Module):
    """A transformer over the tokens of a caption, causal unless its settings say otherwise."""

    in_float32 = True

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = normal(config.context_length, config.width, std=0.01)
        self.padding = nn.Parameter(0.01 * torch.randn_like(self.positions)) if config.padding else None
        self.transformer = transformer_of(config, causal=config.causal)
        self.norm_out = nn.LayerNorm(config.width, eps=config.eps)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def states(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l w"]:
        """One state a token, after the final norm. Raises UsageError for rows longer than the context."""
        if tokens.shape[1] > self.config.context_length:
            raise UsageError(
                f"got {tokens.shape[1]} tokens, this text transformer reads at most {self.config.context_length}"
            )
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        if self.padding is not None:
            x = torch.where((tokens == self.config.pad_id)[..., None], self.padding[: tokens.shape[1]].to(x), x)
        return self.norm_out(self.transformer(x))

    def read(self, tokens: Int[Tensor, "b l"]) -> TextStates:
        """The states of captions, without the columns that are padding in every row."""
        trimmed = self.trimmed(tokens)
        return TextStates(self.states(trimmed), self.valid(trimmed))

    def ends(self, tokens: Int[Tensor, "b l"]) -> Int[Tensor, "b"]:
        """The position of each text's end token. argmax gives the first of several equal values."""
        if self.padding is not None:
            return torch.full((len(tokens),), tokens.shape[1] - 1, dtype=torch.long, device=tokens.device)
        found = tokens if self.config.pool == "highest" else (tokens == self.config.eos_id).int()
        return found.argmax(dim=1)

    def trimmed(self, tokens: Int[Tensor, "b l"]) -> Int[Tensor, "b k"]:
        """Without the columns after the last end token, which influence nothing and cost time."""
        return tokens[:, : int(self.ends(tokens).max()) + 1] if len(tokens) else tokens

    def valid(self, tokens: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        """True up to each text's end token; what follows is padding."""
        return torch.arange(tokens.shape[1], device=tokens.device) <= self.ends(tokens)[:, None]


def transformer_of(config: TowerConfig, *, causal: bool) -> Transformer:
    """The blocks that a tower's settings describe."""
    return Transformer(
        config.width,
        config.depth,
        config.heads,
        activation=config.activation,
        mlp_width=config.mlp_width,
        causal=causal,
        eps=config.eps,
    )
