"""The prior's network: a causal transformer over four tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.modulated import ModulatedBlock
from dalle_2.models.layers.transformer import Transformer


class PriorTransformer(nn.Module):
    """Reads `[z_txt, t, z_t, query]` with causal attention; the query's output is the prediction.

    This is the user's form of the diffusion prior of the DALL·E 2 paper (section 2.2): the learned query comes
    last, so that it alone sees everything. It knows widths and shapes; noise and loss belong to `Prior`.

    image_dim: length of the noised embedding and of the prediction; by default dim, that of the text embedding.
    refine: residual blocks that go on with the query's output alone, beside the noised embedding, modulated by text and
    time. The answer is one vector, and work on it costs a quarter of work on four tokens.
    """

    def __init__(
        self,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        *,
        width: int | None = None,
        image_dim: int | None = None,
        refine: int = 0,
    ) -> None:
        super().__init__()
        width, image_dim = width or dim, image_dim or dim
        self.dim, self.width, self.image_dim = dim, width, image_dim
        self.embed_text = nn.Linear(dim, width)
        self.embed_time = nn.Linear(width, width)
        self.embed_noised = nn.Linear(image_dim, width)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(4, width))
        self.transformer = Transformer(width, depth, heads, causal=True)
        self.refine = nn.ModuleList(ModulatedBlock(width) for _ in range(refine))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, image_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        z_txt: Float[Tensor, "b {self.dim}"],
        z_t: Float[Tensor, "b {self.image_dim}"],
        t_emb: Float[Tensor, "b {self.width}"],
    ) -> Float[Tensor, "b {self.image_dim}"]:
        """One prediction of the configured target (noise, clean embedding or velocity) for each row."""
        query = self.query.expand(len(z_txt), -1).to(z_txt.dtype)
        text, time, noised = self.embed_text(z_txt), self.embed_time(t_emb), self.embed_noised(z_t)
        tokens = torch.stack([text, time, noised, query], dim=1) + self.positions.to(z_txt.dtype)
        x = self.transformer.last(tokens)
        if self.refine:
            x, condition = x + noised + text, F.silu(text + time)
            for block in self.refine:
                x = block(x, condition)
        return self.out(self.norm(x))
