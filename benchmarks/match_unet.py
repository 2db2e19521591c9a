"""Which settings of our U-Net have the parameters and the FLOPs of theirs?

    .venv-peers/bin/python benchmarks/match_unet.py

Lists settings within 1 % of their parameters and 20 % of their counted FLOPs (forward and backward, a picture), the
widest first: wide convolutions come nearest to what a processor can give. benchmarks/sides.py holds the choice.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from report import say, show
from sides import DIM, IMAGE_SIZE, build
from train_speed import flop_counter, flops_per_picture, parameter_count

from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig
from dalle_2.models.timestep_embedding import TimestepEmbedder

SHAPES = [(1, 2), (1, 2, 2), (1, 2, 3, 4)]


def candidates(spacing: int) -> Iterator[DecoderUNetConfig]:
    """Attention on the coarsest level alone. `t_dim` settles the parameters without touching the FLOPs."""
    choices = product((1, 2), range(64, 161, 32), SHAPES, (1, 2, 3), range(256, 833, spacing))
    for patch, channels, multiples, blocks, t_dim in choices:
        yield DecoderUNetConfig(
            channels=channels, multiples=multiples, blocks=blocks, attention=(len(multiples) - 1,),
            patch=patch, z_dim=DIM, t_dim=t_dim,
        )  # fmt: skip


def parameters_of(config: DecoderUNetConfig) -> int:
    with torch.device("meta"):
        return parameter_count(DecoderUNet(config)) + parameter_count(TimestepEmbedder(config.t_dim))


def flops_of(config: DecoderUNetConfig) -> float:
    """FLOPs of a picture's forward and backward pass, counted without computing any."""
    with torch.device("meta"), flop_counter() as counter:
        x, z, t_emb = (
            torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE),
            torch.randn(1, DIM),
            torch.randn(1, config.t_dim),
        )
        DecoderUNet(config)(x, z, t_emb).sum().backward()
    return counter.get_total_flops()


def matches(parameters: int, flops: float, spacing: int) -> Iterator[dict[str, Any]]:
    for config in candidates(spacing):
        size = parameters_of(config) / parameters
        if abs(size - 1) < 0.01 and abs((work := flops_of(config) / flops) - 1) < 0.2:
            settings = config.model_dump(include={"channels", "multiples", "blocks", "patch", "t_dim"})
            yield {**settings, "parameters": round(size, 4), "FLOPs": round(work, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Settings of our U-Net that match theirs.")
    parser.add_argument("--quick", action="store_true", help="a coarse grid")
    arguments = parser.parse_args()
    theirs = build("theirs", "decoder")
    parameters, flops = parameter_count(theirs.model), flops_per_picture(theirs)
    say(f"theirs: {parameters / 1e6:.2f} M parameters, {flops / 1e9:.2f} GFLOP a picture; below as shares of these")
    found = sorted(matches(parameters, flops, 576 if arguments.quick else 64), key=lambda row: -row["channels"])
    nothing = [{"result": "nothing matches"}]
    show(found or nothing, {"parameters": parameters, "flops": flops, "matches": found})


if __name__ == "__main__":
    main()
