"""What CLIP sees in the drafts of embeddings: the shortest way from a wish to what a picture of it would show.

A draft is drawn in one go and CLIP reads small pictures, so that a hundred embeddings can be looked at before one of
them is drawn in earnest. What CLIP sees in a draft is, other than what a prior wishes for, surely the embedding of a
picture: what an edit ends in comes from here.
"""

from jaxtyping import Float
from torch import Tensor

from dalle_2.images import to_pils
from dalle_2.models.dalle2 import DALLe2


def drafted(pipeline: DALLe2, z_img: Float[Tensor, "n d"]) -> Float[Tensor, "n 3 s s"]:
    """The drafts of some embeddings, by a pipeline whose decoder has one."""
    drafts = pipeline.decoder.drafts(z_img)
    assert drafts is not None
    return drafts.float()


def seen(pipeline: DALLe2, pictures: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
    """CLIP's embeddings of small pictures."""
    return pipeline._encode_images(to_pils(pictures))
