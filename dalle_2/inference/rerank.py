"""Of several pictures for one prompt, those that CLIP finds closest to it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from PIL import Image
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.models.dalle2 import DALLe2
from dalle_2.scalars import plain_numbers


@plain_numbers
def reranked(pipeline: DALLe2, made: Iterable[Generation], keep: int = 1, *, of: int | None = None) -> list[Generation]:
    """The `keep` best pictures of each prompt, best first, with the cosine of picture and prompt as "clip" in their
    metadata. of: how many pictures in a row belong to one prompt; by default all of them.

    Raises UsageError for keep below 1 or above that, pictures that don't come out even, and plain pictures, which know
    no prompt.
    """
    made = list(made)
    for one in made:
        if not isinstance(one, Generation):
            raise UsageError(
                f"expected what generations() and the edits yield, got {type(one).__name__}, which knows no prompt: "
                "closeness(pipeline, pictures, captions) takes plain pictures"
            )
    size = of or len(made)
    if not 1 <= keep <= size or len(made) % size:
        raise UsageError(f"of {size} pictures a prompt 1 to {size} can be kept, got {keep} of {len(made)}")
    rows = scored(pipeline, made)
    groups = (rows[start : start + size] for start in range(0, len(rows), size))
    return [best for group in groups for best in sorted(group, key=lambda one: -one.metadata["clip"])[:keep]]


def scored(pipeline: DALLe2, made: Sequence[Generation]) -> list[Generation]:
    """The same pictures, each with how close it is to its prompt."""
    if not made:
        return []
    cosines = closeness(pipeline, [one.image for one in made], [one.prompt for one in made])
    return [
        replace(generation, metadata={**generation.metadata, "clip": round(cosine, 4)})
        for generation, cosine in zip(made, cosines, strict=True)
    ]


def closeness(pipeline: DALLe2, images: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
    """The cosine of CLIP's embeddings of each picture and its caption. Raises UsageError for other numbers of them."""
    if len(images) != len(captions):
        raise UsageError(f"got {len(captions)} captions for {len(images)} pictures: give one a picture")
    z_img, z_txt = pipeline._encode_images(list(images)), pipeline._encode_text(list(captions))
    return F.cosine_similarity(z_img, z_txt, dim=-1).tolist()
