"""Self-attention over tokens.

Shape letters: B batch, N tokens, M tokens looked at, D width, H heads, K width of one head.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, autocast, is_grad_enabled, nn

from dalle_2.errors import ConfigError


def attend(
    q_BHNK: Float[Tensor, "B H N K"],
    k_BHMK: Float[Tensor, "B H M K"],
    v_BHMK: Float[Tensor, "B H M K"],
    *,
    keep: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B H N K"]:
    """softmax(q kᵀ / √K) v by PyTorch's fused kernel, in the dtype of `q`.

    keep: broadcastable to (B, H, N, M); True where a query may look, or numbers that are added to the scores.
    `causal` and `keep` exclude each other.
    """
    dtype = q_BHNK.dtype
    # The fused kernel's backward pass in half precision was four times slower than in float32, measured on a CPU
    # that has no bfloat16 instructions.
    slow = q_BHNK.device.type == "cpu" and dtype.itemsize == 2 and is_grad_enabled()
    if not slow:
        return nn.functional.scaled_dot_product_attention(
            q_BHNK, k_BHMK, v_BHMK, attn_mask=keep, is_causal=causal
        )
    with autocast("cpu", enabled=False):
        y_BHNK = nn.functional.scaled_dot_product_attention(
            q_BHNK.float(), k_BHMK.float(), v_BHMK.float(), attn_mask=keep, is_causal=causal
        )
    return y_BHNK.to(dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values.

    Raises ConfigError if `width` can't be divided among the heads.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(
                f"width {width} can't be divided among {heads} heads: choose a divisor of the width"
            )
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x_BND: Float[Tensor, "B N D"], keep: Bool[Tensor, "B 1 N N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """keep: True where a query (third axis) may look at a key (last axis); replaces the causal mask."""
        q_BHNK, k_BHNK, v_BHNK = self._heads_of(x_BND)
        return self._merged(attend(q_BHNK, k_BHNK, v_BHNK, keep=keep, causal=self.causal and keep is None))

    def last(
        self, x_BND: Float[Tensor, "B N D"], keep: Bool[Tensor, "B 1 N N"] | None = None
    ) -> Float[Tensor, "B 1 D"]:
        """What `forward` gives at the last token, which sees all that `keep` allows, causal or not."""
        q_BHNK, k_BHNK, v_BHNK = self._heads_of(x_BND)
        return self._merged(attend(q_BHNK[:, :, -1:], k_BHNK, v_BHNK, keep=None if keep is None else keep[:, :, -1:]))

    def prefill(
        self,
        x_BND: Float[Tensor, "B N D"],
        store_2BHMK: Float[Tensor, "2 B H M K"],
        keep: Bool[Tensor, "B 1 N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """What `forward` gives; keys and values become the first N of the store."""
        q_BHNK, *kv = self._heads_of(x_BND)
        store_2BHMK[:, :, :, : x_BND.shape[1]] = torch.stack(kv)
        return self._merged(attend(q_BHNK, kv[0], kv[1], keep=keep, causal=self.causal and keep is None))

    def step(
        self,
        x_B1D: Float[Tensor, "B 1 D"],
        store_2BHMK: Float[Tensor, "2 B H M K"],
        position: int,
        bias: Float[Tensor, "B 1 1 N"] | None = None,
    ) -> Float[Tensor, "B 1 D"]:
        """What `forward` gives at token `position`, the ones before it being in the store, where it is put too.

        Views instead of einops here: a token's attention takes microseconds, as long as einops itself.
        """
        B, _, D = x_B1D.shape
        qkv_B3HK = self.qkv(x_B1D).view(B, 3, self.heads, D // self.heads)
        store_2BHMK[:, :, :, position] = qkv_B3HK[:, 1:].transpose(0, 1)
        k_BHNK, v_BHNK = store_2BHMK[:, :, :, : position + 1].unbind(0)
        return self.out(attend(qkv_B3HK[:, 0, :, None], k_BHNK, v_BHNK, keep=bias).reshape(B, 1, D))

    def after(
        self,
        x_BND: Float[Tensor, "B N D"],
        store_2BHMK: Float[Tensor, "2 B H M K"],
        keep: Bool[Tensor, "B 1 N M_and_N"],
    ) -> Float[Tensor, "B N D"]:
        """What `forward` gives for tokens behind those in the store."""
        q_BHNK, k_BHNK, v_BHNK = self._heads_of(x_BND)
        k_BHMK, v_BHMK = (torch.cat(both, 2) for both in zip(store_2BHMK, (k_BHNK, v_BHNK), strict=True))
        return self._merged(attend(q_BHNK, k_BHMK, v_BHMK, keep=keep))

    def _heads_of(self, x_BND: Float[Tensor, "B N D"]) -> tuple[Tensor, ...]:
        return rearrange(self.qkv(x_BND), "B N (three H K) -> three B H N K", three=3, H=self.heads).unbind(0)

    def _merged(self, y_BHNK: Float[Tensor, "B H N K"]) -> Float[Tensor, "B N D"]:
        return self.out(rearrange(y_BHNK, "B H N K -> B N (H K)"))
