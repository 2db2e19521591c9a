"""What an embedding must know besides which caption belongs to which picture; only training asks."""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.models.precision import in_own_precision

PHRASE_LENGTH = 4  # "red circle", "circle to the left": long enough to tie an attribute or a place to its object
HASH_FACTORS = (1_000_003, 40_503, 2_654_435_761, 97_777)


class SideTasks(nn.Module):
    """Two questions to an embedding: which phrases the caption holds, and what the picture looks like from afar.

    The contrastive loss alone is content with whatever tells the pictures of a batch apart, and learns last which
    colour belongs to which shape. `phrases`: hash classes of one to four consecutive tokens, asked of the image's
    and of the text's embedding. `thumbnail`: the side of a small copy of the picture, asked of both: a caption too
    says what stands where, and "to the left of" is slow to learn from which caption fits which picture alone.
    """

    def __init__(self, embed_dim: int, *, phrases: int, thumbnail: int) -> None:
        super().__init__()
        self.classes, self.thumbnail = phrases, thumbnail
        self.scale = math.sqrt(embed_dim)  # numbers of a unit vector are small
        self.phrases = nn.Linear(embed_dim, phrases) if phrases else None
        if self.phrases is not None:
            nn.init.constant_(self.phrases.bias, -4.0)  # most phrases are absent
        self.picture = Picture(embed_dim, thumbnail) if thumbnail else None

    @in_own_precision
    def losses(
        self,
        z_img: Float[Tensor, "b d"],
        z_txt: Float[Tensor, "b d"],
        image: Float[Tensor, "b 3 s s"],
        tokens: Int[Tensor, "b l"],
        words: Int[Tensor, "b"],
    ) -> dict[str, Tensor]:
        """"phrases_image" and "phrases_text" in nats a caption, "thumbnail" and "thumbnail_text" as squared errors.

        A task of size 0 has none. words: position of each row's end token; the tokens between the first and that one
        are the caption.
        """
        z_img, z_txt = self.scale * z_img, self.scale * z_txt
        parts: dict[str, Tensor] = {}
        if self.phrases is not None:
            present = phrases_of(tokens, words, self.classes)
            parts["phrases_image"] = _missed(self.phrases(z_img), present)
            parts["phrases_text"] = _missed(self.phrases(z_txt), present)
        if self.picture is not None:
            small = F.adaptive_avg_pool2d(image.float(), self.thumbnail)
            drawn_image, drawn_text = self.picture(torch.cat([z_img, z_txt])).float().chunk(2)
            parts["thumbnail"] = F.mse_loss(drawn_image, small)
            parts["thumbnail_text"] = F.mse_loss(drawn_text, small)
        return parts


class Picture(nn.Module):
    """A picture drawn in one go from an embedding: a coarse grid, refined twice by convolutions.

    Convolutions draw a shape alike at every place, so they ask for shapes long before one matrix would.
    side: of the picture, in pixels; a multiple of 8.
    """

    def __init__(self, embed_dim: int, side: int, *, channels: int = 64) -> None:
        super().__init__()
        if side % 8:
            raise UsageError(f"a thumbnail has a side that 8 divides, got {side}")
        self.grid, fold = side // 8, 4
        self.coarse = nn.Linear(embed_dim, channels * self.grid**2)
        self.draw = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.PixelShuffle(2),
            nn.Conv2d(channels // 4, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 3 * fold**2, 3, padding=1),
            nn.PixelShuffle(fold),
        )

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 s s"]:
        coarse = rearrange(self.coarse(z), "b (c h w) -> b c h w", h=self.grid, w=self.grid)
        return self.draw(coarse.contiguous(memory_format=torch.channels_last))


def phrases_of(tokens: Int[Tensor, "b l"], words: Int[Tensor, "b"], classes: int) -> Float[Tensor, "b {classes}"]:
    """1 for every hash class of one to four consecutive tokens in a caption, 0 for the others."""
    present = torch.zeros(len(tokens), classes + 1, dtype=torch.float32, device=tokens.device)
    position = torch.arange(tokens.shape[1], device=tokens.device)
    key = torch.zeros_like(tokens)
    for length in range(1, PHRASE_LENGTH + 1):
        shifted = F.pad(tokens, (0, length - 1))[:, length - 1 :]
        key = key + shifted * HASH_FACTORS[length - 1] + length
        inside = (position >= 1) & (position + length <= words[:, None])
        present.scatter_(1, torch.where(inside, key % classes, classes), 1.0)
    return present[:, :classes]


def _missed(logits: Float[Tensor, "b k"], present: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    loss = F.binary_cross_entropy_with_logits(logits.float(), present, reduction="sum")
    return loss / len(logits)
