"""The tensors of OpenAI's dVAE as published, pair by pair with ours."""

from dalle_2.weights.layout import Pair


def dvae_pairs(groups: int, blocks: int) -> list[Pair]:
    """Of the encoder or of the decoder, which are named alike. A block has a skip only where the width changes."""
    pairs = [*_conv("conv_in", "input"), *_conv("conv_out", "output.conv")]
    for group in range(groups):
        for block in range(blocks):
            ours, theirs = f"groups.{group}.{block}", f"group_{group + 1}.block_{block + 1}"
            pairs += _conv(f"{ours}.skip", f"{theirs}.id_path")
            for n in range(4):
                pairs += _conv(f"{ours}.path.{n}", f"{theirs}.res_path.conv_{n + 1}")
    return pairs


def _conv(ours: str, theirs: str) -> list[Pair]:
    return [Pair(f"{ours}.weight", (f"blocks.{theirs}.w",)), Pair(f"{ours}.bias", (f"blocks.{theirs}.b",))]
