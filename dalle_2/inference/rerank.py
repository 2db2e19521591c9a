"""Of several pictures for one prompt, those that CLIP finds closest to it."""

from collections.abc import Sequence
from dataclasses import replace

from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.models.dalle2 import DALLe2


def reranked(pipeline: DALLe2, made: Sequence[Generation], keep: int = 1) -> list[Generation]:
    """The `keep` best pictures of each prompt, best first, with the cosine of picture and prompt as "clip" in their
    metadata. Raises UsageError for keep below 1, and for more than there are."""
    groups: dict[str, list[Generation]] = {}
    for generation in scored(pipeline, made):
        groups.setdefault(generation.prompt, []).append(generation)
    fewest = min(map(len, groups.values()), default=0)
    if not 1 <= keep <= fewest:
        raise UsageError(f"of {fewest} pictures a prompt 1 to {fewest} can be kept, got {keep}")
    ordered = (sorted(group, key=lambda one: -one.metadata["clip"]) for group in groups.values())
    return [generation for group in ordered for generation in group[:keep]]


def scored(pipeline: DALLe2, made: Sequence[Generation]) -> list[Generation]:
    """The same pictures, each with how close it is to its prompt."""
    if not made:
        return []
    z_img = pipeline._encode_images([generation.image for generation in made])
    z_txt = pipeline._encode_text([generation.prompt for generation in made])
    cosines = F.cosine_similarity(z_img, z_txt, dim=-1).tolist()
    return [
        replace(generation, metadata={**generation.metadata, "clip": round(cosine, 4)})
        for generation, cosine in zip(made, cosines, strict=True)
    ]
