"""A small causal transformer that writes a caption from one embedding; only training uses it."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from dalle_2.models.layers.transformer import Transformer

PREFIX = 4  # tokens that the embedding becomes


class CaptionDecoder(nn.Module):
    """Reads an embedding as `PREFIX` tokens and predicts the caption token by token.

    After CoCa (Yu et al. 2022), but from the embedding alone: what it can't find there, it can't write.
    """

    def __init__(
        self, embed_dim: int, *, width: int, depth: int, heads: int, vocab_size: int, context_length: int
    ) -> None:
        super().__init__()
        self.prefix = nn.Linear(embed_dim, PREFIX * width)
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(0.01 * torch.randn(PREFIX + context_length - 1, width))
        self.transformer = Transformer(width, depth, heads, causal=True)
        self.norm_out = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocab_size)
        # A unit vector's numbers have a spread of embed_dim^-1/2: this makes prefix tokens of unit variance.
        nn.init.normal_(self.prefix.weight)
        nn.init.zeros_(self.prefix.bias)
        nn.init.normal_(self.logits.weight, std=width**-0.5 / 10)
        nn.init.zeros_(self.logits.bias)

    def losses(
        self, z: Float[Tensor, "k b d"], tokens: Int[Tensor, "b l"], ends: Int[Tensor, "b"]
    ) -> Float[Tensor, "k"]:
        """Cross entropy a token, in nats, of writing `tokens` from each of k sets of embeddings.

        ends: position of each row's last token; what follows is padding.
        """
        kinds, targets = len(z), tokens[:, 1:]
        hidden = self(rearrange(z, "k b d -> (k b) d"), repeat(tokens[:, :-1], "b l -> (k b) l", k=kinds))
        written = torch.arange(targets.shape[1], device=tokens.device) < ends[:, None]
        # Logits only where there is something to predict: with a large vocabulary they cost the most.
        picked = rearrange(hidden, "(k b) l w -> k b l w", k=kinds)[:, written]
        logits = rearrange(self.logits(picked).float(), "k n v -> k v n")
        wanted = repeat(targets[written], "n -> k n", k=kinds)
        return nn.functional.cross_entropy(logits, wanted, reduction="none").mean(dim=1)

    def forward(self, z: Float[Tensor, "b d"], tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l w"]:
        """States after reading the embedding and each token; the one at position i predicts token i + 1."""
        prefix = rearrange(self.prefix(z), "b (p w) -> b p w", p=PREFIX)
        x = torch.cat([prefix, self.embedding(tokens).to(prefix.dtype)], dim=1)
        return self.norm_out(self.transformer(x + self.positions[: x.shape[1]]))[:, PREFIX:]
