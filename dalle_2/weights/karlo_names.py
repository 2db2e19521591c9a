"""Karlo's tensors in the layout of diffusers' UnCLIP, pair by pair with ours."""

from itertools import chain

from einops import rearrange
from torch import Tensor

from dalle_2.weights.layout import Pair, Way, layers
from dalle_2.weights.unet_places import Place, places

TEXT = "text_proj"  # a part of its own there, a part of the decoder's network here


def prior_pairs(depth: int) -> list[Pair]:
    """`prior`, but for `clip_mean` and `clip_std`, which are settings here."""
    network = "network"
    return [
        *time_pairs("time"),
        *layers(f"{network}.embed_noised", "proj_in"),
        *layers(f"{network}.embed_text", "embedding_proj"),
        *layers(f"{network}.embed_states", "encoder_hidden_states_proj"),
        Pair(f"{network}.positions", ("positional_embedding",), ones=1),
        Pair(f"{network}.query", ("prd_embedding",), ones=2),
        *chain.from_iterable(_block(f"{network}.transformer", f"transformer_blocks.{n}", n) for n in range(depth)),
        *layers(f"{network}.norm", "norm_out"),
        *layers(f"{network}.out", "proj_to_clip_embeddings"),
    ]


def _block(transformer: str, theirs: str, n: int) -> list[Pair]:
    """A transformer block; there is no norm2, since nothing is attended to but the tokens themselves."""
    ours = f"{transformer}.blocks.{n}"
    return [
        *layers(f"{ours}.norm_1", f"{theirs}.norm1"),
        *layers(f"{ours}.attention.qkv", *(f"{theirs}.attn1.to_{letter}" for letter in "qkv")),
        *layers(f"{ours}.attention.out", f"{theirs}.attn1.to_out.0"),
        *layers(f"{ours}.norm_2", f"{theirs}.norm3"),
        *layers(f"{ours}.mlp.0", f"{theirs}.ff.net.0.proj"),
        *layers(f"{ours}.mlp.2", f"{theirs}.ff.net.2"),
    ]


def time_pairs(ours: str) -> list[Pair]:
    """The network that timesteps go through."""
    return [*layers(f"{ours}.mlp.0", "time_embedding.linear_1"), *layers(f"{ours}.mlp.2", "time_embedding.linear_2")]


def text_pairs(network: str, tokens: int, width: int) -> list[Pair]:
    """`text_proj`: what the decoder is told of text and image embeddings. tokens: made of the latter, so wide each."""
    to_ours, to_theirs = token_order(tokens, width)
    return [
        Pair(f"{network}.null_z", (f"{TEXT}.learned_classifier_free_guidance_embeddings",)),
        *layers(f"{network}.embed_z", f"{TEXT}.clip_image_embeddings_project_to_time_embeddings"),
        *layers(
            f"{network}.context", f"{TEXT}.clip_extra_context_tokens_proj", to_ours=to_ours, to_theirs=to_theirs
        ),
        *layers(f"{network}.embed_text", f"{TEXT}.embedding_proj"),
        *layers(f"{network}.context_text", f"{TEXT}.encoder_hidden_states_proj"),
        *layers(f"{network}.norm_text", f"{TEXT}.text_encoder_hidden_states_norm"),
    ]


def token_order(tokens: int, width: int) -> tuple[Way, Way]:
    """There the numbers of a layer lie channel by channel, and the tokens' within each; here token by token."""

    def to_ours(x: Tensor) -> Tensor:
        return rearrange(x, "(width tokens) ... -> (tokens width) ...", tokens=tokens, width=width)

    def to_theirs(x: Tensor) -> Tensor:
        return rearrange(x, "(tokens width) ... -> (width tokens) ...", tokens=tokens, width=width)

    return to_ours, to_theirs


def unet_pairs(network: str, levels: int, blocks: int, attention: tuple[int, ...], middle: bool) -> list[Pair]:
    """A U-Net of the decoder or of super-resolution, without its timesteps. attention: the levels that attend."""
    pairs = [
        *layers(f"{network}.conv_in", "conv_in"),
        *layers(f"{network}.norm_out", "conv_norm_out"),
        *layers(f"{network}.conv_out", "conv_out"),
    ]
    for place in places(network, levels, blocks, attention, middle):
        side = _side(place, levels)
        if place.n is None:
            pairs += _residual(place.ours, f"{side}.{place.side}samplers.0")
            continue
        pairs += _residual(place.ours, f"{side}.resnets.{place.n}")
        if place.attends:
            pairs += _attention(place.ours, f"{side}.attentions.{place.n}")
    return pairs


def _side(place: Place, levels: int) -> str:
    """Levels are counted in the order they come in: up from the coarsest."""
    if place.side == "middle":
        return "mid_block"
    return f"down_blocks.{place.level}" if place.side == "down" else f"up_blocks.{levels - 1 - place.level}"


def _residual(ours: str, theirs: str) -> list[Pair]:
    """A residual block; `skip` is only there where the width changes."""
    return [
        *layers(f"{ours}.residual.norm_in", f"{theirs}.norm1"),
        *layers(f"{ours}.residual.conv_in", f"{theirs}.conv1"),
        *layers(f"{ours}.residual.embed", f"{theirs}.time_emb_proj"),
        *layers(f"{ours}.residual.norm_out", f"{theirs}.norm2"),
        *layers(f"{ours}.residual.conv_out", f"{theirs}.conv2"),
        *layers(f"{ours}.residual.skip", f"{theirs}.conv_shortcut"),
    ]


def _attention(ours: str, theirs: str) -> list[Pair]:
    return [
        *layers(f"{ours}.attention.norm", f"{theirs}.group_norm"),
        *layers(f"{ours}.attention.to_qkv", *(f"{theirs}.to_{letter}" for letter in "qkv")),
        *layers(f"{ours}.attention.to_context_kv", f"{theirs}.add_k_proj", f"{theirs}.add_v_proj"),
        *layers(f"{ours}.attention.to_out", f"{theirs}.to_out.0"),
    ]
