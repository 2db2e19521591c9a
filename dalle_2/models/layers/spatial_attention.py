"""Self-attention over the positions of a feature map, with extra context as keys and values."""

from typing import TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.init import zeroed
from dalle_2.models.layers.residual import group_norm

KeysValues: TypeAlias = tuple[Float[Tensor, "b heads m k"], Float[Tensor, "b heads m k"]]


def heads_of(channels: int, head_channels: int) -> int:
    """How many heads of about `head_channels` channels there are; a narrow map has one."""
    return max(1, channels // head_channels)


class SpatialAttention(nn.Module):
    """Each position looks at every position and at every context token (GLIDE, section 3.1).

    Shape letters: B batch, N positions, M context tokens, H heads, K channels of a head.
    """

    def __init__(self, channels: int, head_channels: int, context: int | None, groups: int | None = None) -> None:
        super().__init__()
        self.heads = heads_of(channels, head_channels)
        self.norm = group_norm(channels, groups)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_context_kv = nn.Linear(context, 2 * channels) if context else None
        self.to_out = zeroed(nn.Linear(channels, channels))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        context: KeysValues | None = None,
        keep: Bool[Tensor, "b 1 1 m_and_n"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """context: of `read`. keep: False at its tokens, which come before the positions, that nothing may look at."""
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "B C h w -> B (h w) C")
        q_BHNK, k_BHNK, v_BHNK = rearrange(
            self.to_qkv(tokens), "B N (three H K) -> three B H N K", three=3, H=self.heads
        )
        if context is not None:
            k_BHNK, v_BHNK = torch.cat([context[0], k_BHNK], 2), torch.cat([context[1], v_BHNK], 2)
        y = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=keep)
        y = self.to_out(rearrange(y, "B H N K -> B N (H K)"))
        return x + rearrange(y, "B (h w) C -> B C h w", h=height)

    def read(self, context: Float[Tensor, "b m d"] | None) -> KeysValues | None:
        """Keys and values of context tokens, which are the same at every step; None where there are none."""
        if self.to_context_kv is None or context is None:
            return None
        k_BHMK, v_BHMK = rearrange(self.to_context_kv(context), "B M (two H K) -> two B H M K", two=2, H=self.heads)
        return k_BHMK, v_BHMK
