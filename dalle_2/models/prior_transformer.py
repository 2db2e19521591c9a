"""The prior's network: a causal transformer over the caption, its embedding, the time and the noised embedding."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.init import normal
from dalle_2.models.layers.kv_cache import KVCache
from dalle_2.models.layers.modulated import ModulatedBlock
from dalle_2.models.layers.transformer import Transformer
from dalle_2.models.precision import MixedPrecision, buildable, in_own_precision

OWN = 4  # tokens beside the caption's: its embedding, the time, the noised embedding, the query


class PriorTransformer(MixedPrecision):
    """Reads `[text states, z_txt, t, z_t, query]` with causal attention; the query's output is the prediction.

    With text states it is the diffusion prior of the DALL·E 2 paper (section 2.2), without them the user's form of it.
    The learned query comes last, so that it alone sees everything. It knows widths and shapes; noise and loss belong to
    `Prior`.

    image_dim: length of the noised embedding and of the prediction; by default dim, that of the text embedding.
    refine: residual blocks that go on with the query's output alone, beside the noised embedding, modulated by text and
    time. The answer is one vector, and work on it costs a quarter of work on four tokens. text_dim: width of the text
    states; without it there are none. text_positions: how many places for them have positions of their own here, for
    states of a text transformer that was not made for this one. time_projection: whether the time has a linear layer
    more than `TimestepEmbedder` gives it.
    """

    @buildable
    def __init__(
        self,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        *,
        width: int | None = None,
        image_dim: int | None = None,
        refine: int = 0,
        text_dim: int | None = None,
        text_positions: int = 0,
        time_projection: bool = True,
    ) -> None:
        super().__init__()
        width, image_dim = width or dim, image_dim or dim
        self.dim, self.width, self.image_dim = dim, width, image_dim
        self.embed_text = nn.Linear(dim, width)
        self.embed_time = nn.Linear(width, width) if time_projection else nn.Identity()
        self.embed_noised = nn.Linear(image_dim, width)
        self.embed_states = nn.Linear(text_dim, width) if text_dim else None
        self.query = normal(width, std=0.02)
        self.positions = normal(text_positions + OWN, width, std=0.02)
        self.transformer = Transformer(width, depth, heads, causal=True)
        self.refine = nn.ModuleList(ModulatedBlock(width) for _ in range(refine))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, image_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @in_own_precision
    def forward(
        self,
        z_txt: Float[Tensor, "b {self.dim}"],
        z_t: Float[Tensor, "b {self.image_dim}"],
        t_emb: Float[Tensor, "b {self.width}"],
        *,
        states: Float[Tensor, "b l w"] | None = None,
        valid: Bool[Tensor, "b l"] | None = None,
        read: KVCache | None = None,
    ) -> Float[Tensor, "b {self.image_dim}"]:
        """One prediction of the configured target (noise, clean embedding or velocity) for each row.

        states: the encoded caption, which carries its own positions. valid: False at its padding, which nothing looks
        at; both or neither, and only where the network was made for them. read: what `read` made of all that, in place
        of states and valid.
        """
        query = self.query.expand(len(z_txt), -1).to(z_txt.dtype)
        text, time, noised = self.embed_text(z_txt), self.embed_time(t_emb), self.embed_noised(z_t)
        tokens = torch.stack([text, time, noised, query], dim=1) + self.positions[-OWN:].to(z_txt.dtype)
        x = self._query(tokens, states, valid) if read is None else self.transformer.after(tokens[:, 1:], read)[:, -1]
        if self.refine:
            x, condition = x + noised + text, F.silu(text + time)
            for block in self.refine:
                x = block(x, condition)
        return self.out(self.norm(x))

    @in_own_precision
    def read(
        self,
        z_txt: Float[Tensor, "b {self.dim}"],
        states: Float[Tensor, "b l w"] | None = None,
        valid: Bool[Tensor, "b l"] | None = None,
    ) -> KVCache | None:
        """Keys and values of the caption and its embedding. The mask being causal, they are the same at every step.

        None without a caption: the embedding alone is read as fast with the rest.
        """
        if states is None or valid is None:
            return None
        text = self.embed_text(z_txt) + self.positions[-OWN].to(z_txt.dtype)
        whole, seen = self._behind(text[:, None], states, valid)
        cache = self.transformer.cache(len(whole), whole.shape[1], seen)
        self.transformer.prefill(whole, cache)
        return cache

    def _query(
        self, tokens: Float[Tensor, "b 4 w"], states: Float[Tensor, "b l w2"] | None, valid: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "b w"]:
        """What the query sees behind the caption; of none at all where no states are given."""
        if states is None or valid is None:
            return self.transformer.last(tokens)
        return self.transformer.last(*self._behind(tokens, states, valid))

    def _behind(
        self, tokens: Float[Tensor, "b n w"], states: Float[Tensor, "b l w2"], valid: Bool[Tensor, "b l"]
    ) -> tuple[Float[Tensor, "b m w"], Bool[Tensor, "b m"]]:
        """Tokens behind those of the caption, and False at what is padding."""
        assert self.embed_states is not None
        words = self.embed_states(states).to(tokens.dtype)
        if len(self.positions) > OWN:
            words = words + self.positions[: words.shape[1]].to(tokens.dtype)
        return torch.cat([words, tokens], dim=1), torch.cat([valid, valid.new_ones(tokens.shape[:2])], dim=1)
