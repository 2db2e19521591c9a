"""The best of several image embeddings that a prior drew for one caption (DALL·E 2 paper, section 2.2).

The paper draws two and keeps the one with the higher dot product with the text embedding. Where a decoder has a draft,
one can look closer for little: each candidate is drawn and the picture is seen by CLIP again. An embedding that is no
picture's comes back as another one, and what the caption asks for is then judged on a picture, not on a wish. What CLIP
saw in the best draft takes the candidate's place: it surely is the embedding of a picture.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def scores(
    z: Float[Tensor, "b k d"], z_txt: Float[Tensor, "b d"], seen: Float[Tensor, "b k d"] | None = None
) -> Float[Tensor, "b k"]:
    """How well each candidate fits its text embedding.

    seen: CLIP's embeddings of the pictures drawn from the candidates. With them the score is the cosine of picture and
    text plus that of picture and candidate; without them the cosine of candidate and text.
    """
    text = z_txt[:, None]
    if seen is None:
        return F.cosine_similarity(z, text, dim=-1)
    return F.cosine_similarity(seen, text, dim=-1) + F.cosine_similarity(seen, z, dim=-1)


def best(z: Float[Tensor, "b k d"], score: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
    """The candidate with the highest score in each row."""
    return z[torch.arange(len(z), device=z.device), score.argmax(dim=1)]
