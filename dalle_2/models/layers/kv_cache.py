"""The keys and values of the tokens that a causal transformer has read, so that none is computed twice.

Shape letters: B batch, N tokens, M tokens there is room for, H heads, K width of one head.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dalle_2.errors import UsageError


class KVCache:
    """Buffers for `tokens` tokens, laid out once: reading a token writes into them and moves nothing.

    valid: False at padding among the first tokens, which no later token then looks at; what follows them is valid.
    stores: one a block, keys first and then values, each (B, H, M, K). length: how many tokens were read.
    """

    def __init__(
        self,
        depth: int,
        rows: int,
        heads: int,
        tokens: int,
        width: int,
        *,
        valid: Bool[Tensor, "B N"] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tokens, self.length = tokens, 0
        self.valid = None if valid is None or valid.all() else valid
        self.stores = torch.empty(depth, 2, rows, heads, tokens, width, device=device, dtype=dtype).unbind(0)
        self._bias: Float[Tensor, "B 1 1 M"] | None = None
        if self.valid is not None:
            # Added to the scores; as True and False it would be turned into this at every token and block.
            self._bias = torch.zeros(rows, 1, 1, tokens, device=device, dtype=dtype)
            self._bias[:, 0, 0, : self.valid.shape[1]].masked_fill_(~self.valid, -torch.inf)

    def advance(self, count: int) -> int:
        """Makes room for the next `count` tokens; where they begin. Raises UsageError where there is none left."""
        begin, self.length = self.length, self.length + count
        if self.length > self.tokens:
            raise UsageError(f"this cache holds {self.tokens} tokens, got {self.length}: make a longer one")
        return begin

    def seen_by(self, count: int) -> Bool[Tensor, "B 1 {count} N"]:
        """What each of the next `count` tokens looks at: those read so far but for padding, and those up to itself."""
        rows, device = self.stores[0].shape[1], self.stores[0].device
        keep = torch.ones(rows, 1, count, self.length + count, dtype=torch.bool, device=device).tril(self.length)
        if self.valid is not None:
            keep[..., : self.valid.shape[1]] &= self.valid[:, None, None]
        return keep

    def bias(self) -> Float[Tensor, "B 1 1 N"] | None:
        """What the newest token's scores are given for padding; None where there is none."""
        return None if self._bias is None else self._bias[..., : self.length]
