"""What an image embedding holds, direction by direction (DALL·E 2 paper, section 4, figure 7)."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.inference.plans import EditSettings, Plan, draw
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.scalars import plain_numbers


@plain_numbers
def reconstructions(
    pipeline: DALLe2,
    image: Image.Image,
    dimensions: Sequence[int] | None = None,
    *,
    seed: int = 0,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """The picture drawn from the first few principal directions of its embedding, one picture for each number of them.

    All are drawn with the noise of `seed`, so that only the directions differ; what is left out is replaced by the mean
    of the training pictures. By default 2, 4, 8 and so on, and all of them. Raises UsageError for a decoder that sees
    embeddings whole, as Karlo's does, and for numbers outside 1 ... all of them.
    """
    space = pipeline._planned_decoder.space
    if space.basis is None or space.mean is None:
        raise UsageError(
            f"the decoder of {pipeline.name or 'this one'} sees embeddings of {space.dim} numbers as they are, and a "
            "reconstruction needs one that was trained on principal directions of them: use such a pipeline, like "
            "shapes-tiny, or train one with --set directions=96"
        )
    counts = checked(doubling(space.width) if dimensions is None else dimensions, space)
    z = pipeline.encode_images([image])
    plans = [Plan(truncated(z, count, space)[0], seed, metadata={"directions": count}) for count in counts]
    return draw(pipeline, plans, "reconstruction", settings, on_step=on_step)


def doubling(most: int) -> list[int]:
    """2, 4, 8 and so on, and `most` at the end."""
    return [2**k for k in range(1, most.bit_length()) if 2**k < most] + [most]


def checked(dimensions: Sequence[int], space: EmbeddingSpace) -> list[int]:
    """Numbers of directions that the space has. Raises UsageError for others, and for none."""
    wrong = [count for count in dimensions if not 1 <= count <= space.width]
    if wrong or not dimensions:
        raise UsageError(f"this decoder sees 1 to {space.width} directions, got {wrong[0] if wrong else 'none'}")
    return list(dimensions)


def truncated(z: Float[Tensor, "n d"], count: int, space: EmbeddingSpace) -> Float[Tensor, "n d"]:
    """Embeddings of which only the first `count` principal directions differ from the mean."""
    seen = space.to_model(z)
    kept = torch.arange(space.width, device=z.device) < count
    return space.finish(space.from_model(torch.where(kept, seen, torch.zeros_like(seen))))
