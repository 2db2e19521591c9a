"""Captions as prior and decoder read them: an embedding and, where a network reads words, tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dalle_2.models.layers.text_transformer import TextStates, TextTransformer
from dalle_2.sampling.guidance import Condition


@dataclass(frozen=True, eq=False)
class Caption:
    """A batch of captions. tokens: None where nothing reads them."""

    z_txt: Float[Tensor, "b d"]
    tokens: Int[Tensor, "b l"] | None = None

    def repeated(self, count: int) -> "Caption":
        """Each caption `count` times in a row."""
        return Caption(self.z_txt.repeat_interleave(count, dim=0), repeated(self.tokens, count))


def repeated(tokens: Int[Tensor, "b l"] | None, count: int) -> Int[Tensor, "b2 l"] | None:
    """The tokens of each caption `count` times in a row."""
    return None if tokens is None else tokens.repeat_interleave(count, dim=0)


def caption_conditions(
    encoder: TextTransformer | None,
    tokens: Int[Tensor, "b l"] | None,
    negative: Int[Tensor, "b l"] | None = None,
    empty: Sequence[int] | None = None,
) -> tuple[Condition, Condition]:
    """What captions add to the null condition and to the full one: `states` and `valid`, a row each.

    The null condition has no caption, or the negative one in its place. Nothing is added for a network that reads no
    captions, and a caption that is not given is none. empty: the tokens of the caption that stands for none, in a
    network that was trained with one.
    """
    if encoder is None:
        return {}, {}
    if empty is not None:
        nothing = torch.tensor([empty], dtype=torch.long, device=encoder.positions.device)
        tokens, negative = nothing if tokens is None else tokens, nothing if negative is None else negative
    if tokens is None:
        absent = _absent(encoder)
        return absent, absent
    both = tokens if negative is None else torch.cat([tokens, negative])  # one width for both
    with torch.autocast(both.device.type, enabled=False):  # once a picture, and all else follows from it
        rows = encoder.read(both)
    count = len(tokens)
    full = TextStates(rows.states[:count], rows.valid[:count])
    null = TextStates(rows.states[count:], rows.valid[count:]) if negative is not None else _emptied(full)
    return null._asdict(), full._asdict()


def _absent(encoder: TextTransformer) -> Condition:
    weight = encoder.positions
    states = weight.new_zeros(1, 1, encoder.config.width)
    return TextStates(states, torch.zeros(1, 1, dtype=torch.bool, device=weight.device))._asdict()


def _emptied(text: TextStates) -> TextStates:
    """One row without a caption, for a whole batch."""
    return TextStates(torch.zeros_like(text.states[:1]), torch.zeros_like(text.valid[:1]))
