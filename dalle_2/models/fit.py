"""Whether the parts of a pipeline speak of the same embeddings and the same picture sizes."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.models.diffusion import unit_space
from dalle_2.models.embedding_space import EmbeddingSpace, check_same
from dalle_2.models.layers.text_transformer import TextConfig


@runtime_checkable
class Encoder(Protocol):
    """What a pipeline asks of its CLIP. It may also have `space`; else unit length is taken for granted."""

    @property
    def dim(self) -> int: ...

    def encode_text(self, prompts: list[str]) -> Float[Tensor, "n d"]: ...

    def encode_images(self, images: list[Image.Image]) -> Float[Tensor, "n d"]: ...


def check_fit(encoder: Encoder, stages: Mapping[str, Any]) -> None:
    """Raises UsageError naming two parts of a run, in its order, that don't fit each other."""
    space = encoder_space(encoder)
    for name, model in stages.items():
        for own in spaces(model):
            check_same(space, own, ("the CLIP encoder", f"the {name}"))
        if getattr(model, "caption", None) is not None:
            check_reads(encoder, name, model.caption.config)
    for small, large in pairwise(name for name in stages if name != "prior"):
        check_sizes(f"{small}'s picture", stages[small].config.image_size, large, stages[large])


def check_reads(encoder: Encoder, name: str, text: TextConfig) -> None:
    """Raises UsageError for a stage that reads captions where the encoder has no tokens that it knows."""
    tokenizer = getattr(encoder, "tokenizer", None)
    if tokenizer is None:
        raise UsageError(f"the {name} reads captions, but this CLIP encoder has no tokenizer: give it one that has")
    vocabulary, length = getattr(tokenizer, "vocab_size", 0), getattr(tokenizer, "context_length", 0)
    if vocabulary > text.vocab_size or length > text.context_length:
        raise UsageError(
            f"the tokenizer has {vocabulary} tokens and rows of {length}, but the {name} knows {text.vocab_size} and "
            f"reads {text.context_length}: use the tokenizer it was trained with"
        )


def spaces(model: Any) -> tuple[EmbeddingSpace, ...]:
    """The embedding spaces that a stage works with."""
    both = (getattr(model, "text_space", None), model.space)
    return tuple(space for space in both if space is not None)


def encoder_space(encoder: Encoder) -> EmbeddingSpace:
    """The space an encoder declares; unit length where it says nothing."""
    space = getattr(encoder, "space", None)
    return space if isinstance(space, EmbeddingSpace) else unit_space(encoder.dim)


def check_sizes(small: str, size: int, large: str, upsampler: Any) -> None:
    """Raises UsageError for a picture of another size than an upsampler takes."""
    wanted = upsampler.config.low_res_size
    if size != wanted:
        raise UsageError(f"the {small} has {size} px, but the {large} takes {wanted} px: resize or change one")


def check_width(z: Tensor, space: EmbeddingSpace, stage: str) -> None:
    """Raises UsageError for embeddings of another shape than a stage takes."""
    if z.ndim != 2 or z.shape[1] != space.dim:
        raise UsageError(f"the {stage} takes embeddings of shape (N, {space.dim}), got {tuple(z.shape)}")
