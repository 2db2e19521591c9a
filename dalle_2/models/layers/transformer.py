"""The pre-LayerNorm transformer that CLIP's two towers and the prior share."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.layers.attention import SelfAttention
from dalle_2.models.layers.kv_cache import KVCache

Activation = Literal["gelu", "quick_gelu"]


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation in OpenAI's CLIP weights."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}
assert tuple(ACTIVATIONS) == get_args(Activation)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_width: int,
        activation: Activation = "gelu",
        causal: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(width, heads, causal=causal)
        self.norm_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), ACTIVATIONS[activation](), nn.Linear(mlp_width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "b 1 n n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self._mixed(x, self.attention(self.norm_1(x), keep))

    def last(
        self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "b 1 n n"] | None = None
    ) -> Float[Tensor, "b 1 d"]:
        """What `forward` gives at the last token, without the work for the others."""
        return self._mixed(x[:, -1:], self.attention.last(self.norm_1(x), keep))

    def prefill(
        self,
        x: Float[Tensor, "b n d"],
        store: Float[Tensor, "2 b h m k"],
        keep: Bool[Tensor, "b 1 n n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """What `forward` gives; keys and values stay in the store."""
        return self._mixed(x, self.attention.prefill(self.norm_1(x), store, keep))

    def step(
        self,
        x: Float[Tensor, "b 1 d"],
        store: Float[Tensor, "2 b h m k"],
        position: int,
        bias: Float[Tensor, "b 1 1 n"] | None = None,
    ) -> Float[Tensor, "b 1 d"]:
        """What `forward` gives at the token of that position, those before it being in the store."""
        return self._mixed(x, self.attention.step(self.norm_1(x), store, position, bias))

    def after(
        self, x: Float[Tensor, "b n d"], store: Float[Tensor, "2 b h m k"], keep: Bool[Tensor, "b 1 n m_and_n"]
    ) -> Float[Tensor, "b n d"]:
        """What `forward` gives behind the tokens in the store, which stays as it is."""
        return self._mixed(x, self.attention.after(self.norm_1(x), store, keep))

    def _mixed(self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm_2(x)))


class Transformer(nn.Module):
    """`depth` blocks, without norms before or after and without positions: those belong to the caller.

    mlp_width: width of the hidden layer; by default mlp_ratio · width.
    Raises ConfigError for an unknown activation or if `width` can't be divided among the heads.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        activation: Activation = "gelu",
        mlp_ratio: float = 4,
        mlp_width: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.causal, self.width, self.heads = causal, width, heads
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                mlp_width=mlp_width or round(mlp_ratio * width),
                activation=activation,
                causal=causal,
                dropout=dropout,
                eps=eps,
            )
            for _ in range(depth)
        )
        self._initialise(width, depth)

    def forward(
        self, x: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """valid: False at padding, which then no other token looks at."""
        keep = None if valid is None else self._keep(valid)
        for block in self.blocks:
            x = block(x, keep)
        return x

    def last(self, x: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b d"]:
        """What `forward` gives at the last token; the last block works for that token alone."""
        if not self.blocks:
            return x[:, -1]
        keep = None if valid is None else self._keep(valid)
        *before, block = self.blocks
        for earlier in before:
            x = earlier(x, keep)
        assert isinstance(block, Block)
        return block.last(x, keep)[:, 0]

    # Token by token: `prefill` reads the first tokens together, `step` one more at a time

    def cache(self, rows: int, tokens: int, valid: Bool[Tensor, "b n"] | None = None) -> KVCache:
        """Room for that many tokens of each row. valid: of the first ones, those that `prefill` reads, as in `forward`.

        Raises UsageError if tokens see those after them, whose keys are not known yet.
        """
        if not self.causal:
            raise UsageError("only a causal transformer can be read token by token: build it with causal=True")
        like = next(self.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))
        reduced = torch.is_autocast_enabled(like.device.type)
        dtype = torch.get_autocast_dtype(like.device.type) if reduced else like.dtype
        size = (len(self.blocks), rows, self.heads, tokens, self.width // self.heads)
        return KVCache(*size, valid=valid, device=like.device, dtype=dtype)

    def prefill(self, x: Float[Tensor, "b n d"], cache: KVCache) -> Float[Tensor, "b n d"]:
        """What `forward` gives for the first tokens, which an empty cache then holds."""
        cache.advance(x.shape[1])
        keep = None if cache.valid is None else self._keep(cache.valid)
        for block, store in zip(self.blocks, cache.stores, strict=True):
            x = block.prefill(x, store, keep)  # type: ignore[operator]
        return x

    def step(self, x: Float[Tensor, "b 1 d"], cache: KVCache) -> Float[Tensor, "b 1 d"]:
        """What `forward` gives for one more token, at the cost of that token alone."""
        position, bias = cache.advance(1), cache.bias()
        for block, store in zip(self.blocks, cache.stores, strict=True):
            x = block.step(x, store, position, bias)  # type: ignore[operator]
        return x

    def after(self, x: Float[Tensor, "b n d"], cache: KVCache) -> Float[Tensor, "b n d"]:
        """What `forward` gives for tokens behind those that the cache holds; it stays as it is."""
        keep = cache.seen_by(x.shape[1])
        for block, store in zip(self.blocks, cache.stores, strict=True):
            x = block.after(x, store[:, :, :, : cache.length], keep)  # type: ignore[operator]
        return x

    def _keep(self, valid: Bool[Tensor, "b n"]) -> Bool[Tensor, "b 1 n n"]:
        n = valid.shape[1]
        # Every token sees at least itself: a row without any key would be 0/0.
        keep = rearrange(valid, "b m -> b 1 1 m") | torch.eye(n, dtype=torch.bool, device=valid.device)
        return keep.tril() if self.causal else keep

    @torch.no_grad()
    def _initialise(self, width: int, depth: int) -> None:
        """As in CLIP's reference code: layers that write into the residual stream shrink with the depth."""
        residual = (2 * max(depth, 1) * width) ** -0.5
        spread = {"qkv": width**-0.5, "out": residual, "0": (2 * width) ** -0.5, "2": residual}
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=spread[name.rpartition(".")[2]])
                nn.init.zeros_(layer.bias)
