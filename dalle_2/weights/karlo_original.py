"""Karlo's tensors as its own repository stored them, pair by pair with ours.

Queries, keys and values of attention lie head by head there, one below the other here.
"""

from einops import rearrange
from torch import Tensor

from dalle_2.weights.karlo_names import token_order
from dalle_2.weights.layout import Pair, Way, layers
from dalle_2.weights.unet_places import Place, places


def prior_pairs(depth: int, head: int, prefix: str = "model.") -> list[Pair]:
    """The prior's network. head: numbers of an attention head."""
    pairs = [
        *layers("time.mlp.0", f"{prefix}time_embed.0"),
        *layers("time.mlp.2", f"{prefix}time_embed.2"),
        *layers("network.embed_noised", f"{prefix}clip_img_proj"),
        *layers("network.embed_text", f"{prefix}text_emb_proj"),
        *layers("network.embed_states", f"{prefix}text_enc_proj"),
        Pair("network.positions", (f"{prefix}positional_embedding",), ones=1),
        Pair("network.query", (f"{prefix}prd_emb",), ones=2),
        *layers("network.norm", f"{prefix}final_ln"),
        *layers("network.out", f"{prefix}out_proj"),
    ]
    return [*pairs, *transformer_pairs("network.transformer", f"{prefix}transformer", depth, head)]


def transformer_pairs(ours: str, theirs: str, depth: int, head: int) -> list[Pair]:
    """The blocks of a transformer."""
    to_ours, to_theirs = _by_head(3, head)
    pairs: list[Pair] = []
    for n in range(depth):
        here, there = f"{ours}.blocks.{n}", f"{theirs}.resblocks.{n}"
        pairs += [
            *layers(f"{here}.norm_1", f"{there}.ln_1"),
            *layers(f"{here}.attention.qkv", f"{there}.attn.c_qkv", to_ours=to_ours, to_theirs=to_theirs),
            *layers(f"{here}.attention.out", f"{there}.attn.c_proj"),
            *layers(f"{here}.norm_2", f"{there}.ln_2"),
            *layers(f"{here}.mlp.0", f"{there}.mlp.c_fc"),
            *layers(f"{here}.mlp.2", f"{there}.mlp.c_proj"),
        ]
    return pairs


def text_pairs(tokens: int, width: int, prefix: str = "model.") -> list[Pair]:
    """What the decoder is told of text and image embeddings. tokens: made of the latter, so wide each."""
    to_ours, to_theirs = token_order(tokens, width)
    return [
        Pair("network.null_z", (f"{prefix}cf_param",)),
        *layers("network.embed_z", f"{prefix}clip_emb"),
        *layers("network.context", f"{prefix}clip_tok_proj", to_ours=to_ours, to_theirs=to_theirs),
        *layers("network.embed_text", f"{prefix}text_feat_proj"),
        *layers("network.context_text", f"{prefix}text_seq_proj.0"),
        *layers("network.norm_text", f"{prefix}text_seq_proj.1"),
    ]


def unet_pairs(
    levels: int, blocks: int, attention: tuple[int, ...], middle: bool, head: int, prefix: str = "model."
) -> list[Pair]:
    """A U-Net with its timesteps. head: numbers of an attention head."""
    pairs = [
        *layers("time.mlp.0", f"{prefix}time_embed.0"),
        *layers("time.mlp.2", f"{prefix}time_embed.2"),
        *layers("network.conv_in", f"{prefix}input_blocks.0.0"),
        *layers("network.norm_out", f"{prefix}out.0"),
        *layers("network.conv_out", f"{prefix}out.2"),
    ]
    for place in places("network", levels, blocks, attention, middle):
        block, child = _number(place, levels, blocks, attention, middle)
        pairs += _residual(place.ours, f"{prefix}{block}.{child}")
        if place.attends:
            pairs += _attention(place.ours, f"{prefix}{block}.{child + 1}", head)
    return pairs


def _number(
    place: Place, levels: int, blocks: int, attention: tuple[int, ...], middle: bool
) -> tuple[str, int]:
    """The block and the child in it: all blocks of a side are counted through, the middle's children stand alone."""
    if place.side == "middle":
        return "middle_block", 0 if place.n == 0 else 1 + middle
    if place.side == "down":  # the input's convolution is block 0, and what leads on has a block of its own
        return f"input_blocks.{1 + (blocks + 1) * place.level + (blocks if place.n is None else place.n)}", 0
    first = (blocks + 1) * (levels - 1 - place.level)
    if place.n is not None:
        return f"output_blocks.{first + place.n}", 0
    return f"output_blocks.{first + blocks}", 1 + (place.level in attention)


def _residual(ours: str, theirs: str) -> list[Pair]:
    return [
        *layers(f"{ours}.residual.norm_in", f"{theirs}.in_layers.0"),
        *layers(f"{ours}.residual.conv_in", f"{theirs}.in_layers.2"),
        *layers(f"{ours}.residual.embed", f"{theirs}.emb_layers.1"),
        *layers(f"{ours}.residual.norm_out", f"{theirs}.out_layers.0"),
        *layers(f"{ours}.residual.conv_out", f"{theirs}.out_layers.3"),
        *layers(f"{ours}.residual.skip", f"{theirs}.skip_connection"),
    ]


def _attention(ours: str, theirs: str, head: int) -> list[Pair]:
    """Its linear layers are convolutions over one position there."""
    pairs = layers(f"{ours}.attention.norm", f"{theirs}.norm")
    for here, there, kinds in (("to_qkv", "qkv", 3), ("to_context_kv", "encoder_kv", 2), ("to_out", "proj_out", 1)):
        to_ours, to_theirs = _of_convolution(_by_head(kinds, head))
        pairs += layers(f"{ours}.attention.{here}", f"{theirs}.{there}", to_ours=to_ours, to_theirs=to_theirs)
    return pairs


def _by_head(kinds: int, head: int) -> tuple[Way, Way]:
    """kinds: 3 of queries, keys and values; 2 of keys and values; 1 of what has no order to change."""

    def to_ours(x: Tensor) -> Tensor:
        return rearrange(x, "(heads kinds head) ... -> (kinds heads head) ...", kinds=kinds, head=head)

    def to_theirs(x: Tensor) -> Tensor:
        return rearrange(x, "(kinds heads head) ... -> (heads kinds head) ...", kinds=kinds, head=head)

    return to_ours, to_theirs


def _of_convolution(ways: tuple[Way, Way]) -> tuple[Way, Way]:
    """The same where weights have one more side."""
    to_ours, to_theirs = ways
    return (
        lambda x: to_ours(x[..., 0] if x.ndim == 3 else x),
        lambda x: to_theirs(x)[..., None] if x.ndim == 2 else to_theirs(x),
    )
