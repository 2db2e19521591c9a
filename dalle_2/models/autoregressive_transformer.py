"""The autoregressive prior's network: a causal transformer that says of each component in which bucket it lies."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.init import normal
from dalle_2.models.layers.smooth_readout import SmoothReadout
from dalle_2.models.layers.transformer import Transformer
from dalle_2.models.precision import MixedPrecision

POINTERS = 2  # tokens between the caption and the components: text embedding and dot product


class AutoregressiveTransformer(MixedPrecision):
    """Reads `[text states, z_txt, dot product, component 1, 2, ...]`; each component is foretold by the token before.

    This is the sequence of the DALL·E 2 paper (section 2.2). It knows widths and shapes; which number a bucket stands
    for, and how one is drawn, belongs to `AutoregressivePrior`. A component is read as its number along a direction of
    its own: a table of buckets would have to learn that they lie in an order. All components share one readout and tell
    each other apart by their positions: readouts of their own would be larger than the transformer.

    dim: length of the text embedding. components, buckets: how many there are. waves: see `SmoothReadout`. dot_buckets:
    of the dot product; one more token stands for an unknown one. context, text_width: number and width of text states;
    context 0 for none.
    """

    def __init__(
        self,
        dim: int,
        components: int,
        buckets: int,
        *,
        width: int,
        depth: int,
        heads: int,
        dot_buckets: int,
        waves: int = 128,
        context: int = 0,
        text_width: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.components, self.buckets = dim, width, components, buckets
        self.context, self.text_width, self.dot_buckets = context, text_width, dot_buckets
        self.prefix_length = context + POINTERS
        self.embed_text = nn.Linear(text_width, width) if context else None
        self.embed_z = nn.Linear(dim, width)
        self.embed_dot = nn.Embedding(dot_buckets + 1, width)
        self.directions = normal(components - 1, width, std=0.1)
        self.positions = normal(self.prefix_length + components - 1, width, std=0.02)
        self.transformer = Transformer(width, depth, heads, causal=True)
        self.norm = nn.LayerNorm(width)
        self.out = SmoothReadout(width, buckets, waves)
        nn.init.normal_(self.embed_dot.weight, std=0.02)

    def prefix(
        self,
        z_txt: Float[Tensor, "b {self.dim}"],
        dot: Int[Tensor, "b"],
        text: Float[Tensor, "b l {self.text_width}"] | None = None,
    ) -> Float[Tensor, "b p {self.width}"]:
        """The embedded tokens before the components. dot: a bucket, or `dot_buckets` for an unknown one."""
        tokens = torch.stack([self.embed_z(z_txt), self.embed_dot(dot)], dim=1)
        if self.embed_text is not None and text is not None:
            tokens = torch.cat([self.embed_text(text), tokens], dim=1)
        return tokens + self.positions[: self.prefix_length]

    def embed(self, values: Float[Tensor, "b n"], first: int = 0) -> Float[Tensor, "b n {self.width}"]:
        """Components `first`, `first + 1`, ... by their numbers, embedded; the last component never is."""
        last, start = first + values.shape[1], self.prefix_length
        return values[..., None] * self.directions[first:last] + self.positions[start + first : start + last]

    def forward(
        self,
        prefix: Float[Tensor, "b p {self.width}"],
        values: Float[Tensor, "b {self.components}"],
        valid: Bool[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b {self.components} {self.buckets}"]:
        """The logits of every component, given those before it. valid: False at padding of the prefix."""
        x = torch.cat([prefix, self.embed(values[:, :-1])], dim=1)
        states = self.transformer(x, _prolonged(valid, self.components - 1))
        return self.logits(states[:, self.prefix_length - 1 :])

    def logits(self, states: Float[Tensor, "*b {self.width}"]) -> Float[Tensor, "*b {self.buckets}"]:
        """The logits of the component after each state."""
        return self.out(self.norm(states))

    def reading(self, rows: int, valid: Bool[Tensor, "b p"] | None = None, *, cached: bool = True) -> "Reading":
        """A sequence to be read token by token, from a cache or by reading it anew each time."""
        if not cached:
            return Rereading(self.transformer, valid)
        return CachedReading(self.transformer, rows, self.prefix_length + self.components - 1, valid)


@runtime_checkable
class Reading(Protocol):
    """A sequence that grows; each call gives the state at its end."""

    def begin(self, prefix: Float[Tensor, "b p w"]) -> Float[Tensor, "b w"]: ...
    def go_on(self, token: Float[Tensor, "b 1 w"]) -> Float[Tensor, "b w"]: ...


class CachedReading:
    """Each token is read once."""

    def __init__(
        self, transformer: Transformer, rows: int, tokens: int, valid: Bool[Tensor, "b p"] | None = None
    ) -> None:
        self.transformer = transformer
        self.cache = transformer.cache(rows, tokens, valid)

    def begin(self, prefix: Float[Tensor, "b p w"]) -> Float[Tensor, "b w"]:
        """Reads the first tokens together."""
        return self.transformer.prefill(prefix, self.cache)[:, -1]

    def go_on(self, token: Float[Tensor, "b 1 w"]) -> Float[Tensor, "b w"]:
        """Reads one more."""
        return self.transformer.step(token, self.cache)[:, 0]


class Rereading:
    """The whole sequence is read anew for each token: what a cache is measured against."""

    def __init__(self, transformer: Transformer, valid: Bool[Tensor, "b p"] | None = None) -> None:
        self.transformer, self.valid = transformer, valid
        self.read: Tensor | None = None

    def begin(self, prefix: Float[Tensor, "b p w"]) -> Float[Tensor, "b w"]:
        """Reads the first tokens."""
        self.read = prefix
        return self.transformer.last(self.read, self.valid)

    def go_on(self, token: Float[Tensor, "b 1 w"]) -> Float[Tensor, "b w"]:
        """Reads all of them and one more."""
        assert self.read is not None
        self.read, self.valid = torch.cat([self.read, token], dim=1), _prolonged(self.valid, 1)
        return self.transformer.last(self.read, self.valid)


def _prolonged(valid: Bool[Tensor, "b n"] | None, count: int) -> Bool[Tensor, "b m"] | None:
    return None if valid is None else F.pad(valid, (0, count), value=True)
