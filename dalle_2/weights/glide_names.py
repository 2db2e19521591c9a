"""GLIDE's tensors as OpenAI published them, pair by pair with ours."""

import torch
from torch import Tensor

from dalle_2.weights.karlo_original import transformer_pairs, unet_pairs
from dalle_2.weights.layout import Pair, Way, layers

CONV_IN = "network.conv_in.weight"


def glide_pairs(
    levels: int,
    blocks: int,
    attention: tuple[int, ...],
    head: int,
    text_depth: int,
    text_head: int,
    pictures: list[int],
) -> list[Pair]:
    """One of the four networks, its text transformer included. head, text_head: numbers of an attention head.

    pictures: how many channels ours stacks, of the noised picture, of the small one and of what is kept.
    """
    to_ours, to_theirs = _stacked(pictures)
    unet = [pair for pair in unet_pairs(levels, blocks, attention, True, head, prefix="") if pair.ours != CONV_IN]
    return [
        *unet,
        Pair(CONV_IN, ("input_blocks.0.0.weight",), to_ours, to_theirs),
        Pair("caption.embedding.weight", ("token_embedding.weight",)),
        Pair("caption.positions", ("positional_embedding",)),
        Pair("caption.padding", ("padding_embedding",)),
        *transformer_pairs("caption.transformer", "transformer", text_depth, text_head),
        *layers("caption.norm_out", "final_ln"),
        *layers("network.embed_text", "transformer_proj"),
    ]


def _stacked(pictures: list[int]) -> tuple[Way, Way]:
    """There what is kept comes before the small picture, here after it."""
    noised, small, kept = pictures

    def to_ours(x: Tensor) -> Tensor:
        first, known, low_res = torch.split(x, [noised, kept, small], dim=1)
        return torch.cat([first, low_res, known], dim=1)

    def to_theirs(x: Tensor) -> Tensor:
        first, low_res, known = torch.split(x, [noised, small, kept], dim=1)
        return torch.cat([first, known, low_res], dim=1)

    return to_ours, to_theirs
