"""How a stage reads captions: through CLIP's text transformer as it is, or through one that is trained along."""

from typing import TypeVar

from torch import nn

from dalle_2.errors import UsageError
from dalle_2.models.clip import CLIP
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.training.ground import Ground
from dalle_2.training.recipe import Reader

M = TypeVar("M", bound=nn.Module)


def reader_config(reader: Reader | None, sizes: TextConfig, ground: Ground) -> TextConfig | None:
    """The text transformer of a stage: none, CLIP's, or one of `sizes` with the vocabulary of CLIP's tokenizer.

    Raises UsageError for a CLIP whose text transformer or tokenizer is another library's.
    """
    if reader is None:
        return None
    if reader == "clip":
        return _clip(ground).text.config
    tokenizer = ground.encoder.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        raise UsageError("captions are read through a tokenizer of this package, and this CLIP has another one")
    known = {name: getattr(tokenizer, name) for name in ("vocab_size", "context_length", "pad_id", "eos_id")}
    return sizes.model_copy(update=known)


def with_reader(model: M, reader: Reader | None, ground: Ground) -> M:
    """The model; where it reads through CLIP's text transformer, with those weights, which stay as they are."""
    if reader == "clip":
        own = model.caption
        assert isinstance(own, TextTransformer)
        weights = _clip(ground).text.state_dict()
        own.load_state_dict({name: value for name, value in weights.items() if not name.startswith("projection.")})
        own.requires_grad_(False)
    return model


def _clip(ground: Ground) -> CLIP:
    model = ground.encoder.model
    if not isinstance(model, CLIP):
        raise UsageError('this CLIP shows its embeddings only: set caption="own" to train a text transformer along')
    return model
