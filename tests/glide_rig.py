"""GLIDE's published files by what is known of them: names, shapes, what the numbers mean. Knows none of our code."""

import gzip
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]
SIZES = {"base.pt": 3, "upsample.pt": 6, "base_inpaint.pt": 7, "upsample_inpaint.pt": 10}  # pictures' channels
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["a n", "Ġ r", "Ġr e", "Ġre d"]


class Shape(NamedTuple):
    """One of the networks."""

    width: int
    multiples: tuple[int, ...]
    blocks: int
    attends: tuple[int, ...]  # levels
    text: int
    text_depth: int
    vocabulary: int
    context: int
    head: int = 64
    text_heads: int = 8
    groups: int = 32


BASE = Shape(192, (1, 2, 3, 4), 3, (1, 2, 3), 512, 16, 50257, 128)
LARGE = BASE._replace(multiples=(1, 1, 2, 2, 4, 4), blocks=2, attends=(3, 4, 5))
TINY = Shape(16, (1, 2), 1, (1,), 24, 2, len(ALPHABET) + len(MERGES) + 1, 12, head=8, text_heads=3, groups=4)


def shapes(of: Shape, pictures: int) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every tensor. pictures: channels that come in."""
    time, made = 4 * of.width, dict[str, tuple[int, ...]]()

    def layer(name: str, *weight: int) -> None:
        made.update({f"{name}.weight": weight, f"{name}.bias": weight[:1]})

    def residual(name: str, before: int, after: int) -> None:
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * after, time)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.encoder_kv", 2 * width, of.text, 1)
        layer(f"{name}.proj_out", width, width, 1)

    made |= {"positional_embedding": (of.context, of.text), "padding_embedding": (of.context, of.text)}
    made["token_embedding.weight"] = (of.vocabulary, of.text)
    layer("final_ln", of.text)
    layer("transformer_proj", time, of.text)
    for n in range(of.text_depth):
        block = f"transformer.resblocks.{n}"
        layer(f"{block}.attn.c_qkv", 3 * of.text, of.text)
        layer(f"{block}.attn.c_proj", of.text, of.text)
        layer(f"{block}.mlp.c_fc", 4 * of.text, of.text)
        layer(f"{block}.mlp.c_proj", of.text, 4 * of.text)
        layer(f"{block}.ln_1", of.text)
        layer(f"{block}.ln_2", of.text)
    layer("time_embed.0", time, of.width)
    layer("time_embed.2", time, time)

    width, number, skips = of.width, 1, [of.width]
    layer("input_blocks.0.0", width, pictures, 3, 3)
    for level, multiple in enumerate(of.multiples):
        for _ in range(of.blocks):
            residual(f"input_blocks.{number}.0", width, of.width * multiple)
            width = of.width * multiple
            if level in of.attends:
                attention(f"input_blocks.{number}.1", width)
            skips.append(width)
            number += 1
        if level + 1 < len(of.multiples):
            residual(f"input_blocks.{number}.0", width, width)
            skips.append(width)
            number += 1
    residual("middle_block.0", width, width)
    attention("middle_block.1", width)
    residual("middle_block.2", width, width)
    number = 0
    for level, multiple in reversed(list(enumerate(of.multiples))):
        for n in range(of.blocks + 1):
            residual(f"output_blocks.{number}.0", width + skips.pop(), of.width * multiple)
            width = of.width * multiple
            if level in of.attends:
                attention(f"output_blocks.{number}.1", width)
            if level and n == of.blocks:
                residual(f"output_blocks.{number}.{1 + (level in of.attends)}", width, width)
            number += 1
    layer("out.0", width)
    layer("out.2", 6, width, 3, 3)
    return made


def weights(of: Shape, pictures: int, seed: int = 0) -> Tensors:
    """Random ones, such that words and time show, and few guesses of the clean picture lie beyond -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes(of, pictures).items():
        spread = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        scales = len(shape) == 1 and name.endswith("weight")
        made[name] = spread * torch.randn(shape, generator=generator) + scales
    made["out.2.weight"] *= 0.2
    return made


def write(folder: Path, *files: str) -> None:
    """The named files, tiny, with a vocabulary of bytes and a few merges."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(files):
        torch.save(weights(TINY, SIZES[name], n), folder / name)
    tokens = [*ALPHABET, *("".join(merge.split()) for merge in MERGES), "<|endoftext|>"]
    vocabulary = json.dumps({token: n for n, token in enumerate(tokens)})
    (folder / "encoder.json.gz").write_bytes(gzip.compress(vocabulary.encode()))
    (folder / "vocab.bpe.gz").write_bytes(gzip.compress("\n".join(["#version: 0.2", *MERGES, ""]).encode()))


class Network:
    """What one of the networks says, reckoned from its tensors by their names."""

    def __init__(self, tensors: Tensors, of: Shape) -> None:
        self.w, self.of = tensors, of

    def __call__(self, pictures: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """pictures: all that is stacked, in GLIDE's order. tokens: padded with the last id of the vocabulary."""
        text = self.text(tokens)
        half = torch.arange(self.of.width // 2) / (self.of.width // 2)
        angles = t[:, None] * torch.exp(-math.log(10000) * half)
        angles = torch.cat([angles.cos(), angles.sin()], dim=1)
        time = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", angles)))
        time = F.silu(time + self.linear("transformer_proj", text[:, -1]))
        x = self.conv("input_blocks.0.0", pictures)
        skips, number = [x], 1
        while f"input_blocks.{number}.0.in_layers.0.weight" in self.w:
            down = (number % (self.of.blocks + 1)) == 0
            x = self.block(f"input_blocks.{number}", x, time, text, "down" if down else "")
            skips.append(x)
            number += 1
        x = self.residual("middle_block.0", x, time)
        x = self.residual("middle_block.2", self.attention("middle_block.1", x, text), time)
        number = 0
        while f"output_blocks.{number}.0.in_layers.0.weight" in self.w:
            x = self.block(f"output_blocks.{number}", torch.cat([x, skips.pop()], dim=1), time, text)
            number += 1
        return self.conv("out.2", F.silu(self.norm("out.0", x)))

    def block(self, name: str, x: Tensor, time: Tensor, text: Tensor, resample: str = "") -> Tensor:
        x = self.residual(f"{name}.0", x, time, resample)
        for child in (1, 2):
            if f"{name}.{child}.qkv.weight" in self.w:
                x = self.attention(f"{name}.{child}", x, text)
            elif f"{name}.{child}.in_layers.0.weight" in self.w:
                x = self.residual(f"{name}.{child}", x, time, "up")
        return x

    def residual(self, name: str, x: Tensor, time: Tensor, resample: str = "") -> Tensor:
        h = F.silu(self.norm(f"{name}.in_layers.0", x))
        if resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if resample == "up":
            h, x = h.repeat_interleave(2, 2).repeat_interleave(2, 3), x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = self.conv(f"{name}.in_layers.2", h)
        scale, shift = self.linear(f"{name}.emb_layers.1", time)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = self.conv(f"{name}.out_layers.3", F.silu(h))
        return h + (self.conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.w else x)

    def attention(self, name: str, x: Tensor, text: Tensor) -> Tensor:
        """Head by head: its queries, keys and values lie together."""
        flat = self.norm(f"{name}.norm", x).flatten(2)
        own = self.w[f"{name}.qkv.weight"][..., 0] @ flat + self.w[f"{name}.qkv.bias"][:, None]
        words = self.w[f"{name}.encoder_kv.weight"][..., 0] @ text.mT + self.w[f"{name}.encoder_kv.bias"][:, None]
        head, made = self.of.head, []
        for n in range(flat.shape[1] // head):
            q, k, v = own[:, 3 * head * n : 3 * head * (n + 1)].chunk(3, dim=1)
            more_k, more_v = words[:, 2 * head * n : 2 * head * (n + 1)].chunk(2, dim=1)
            k, v = torch.cat([more_k, k], dim=2), torch.cat([more_v, v], dim=2)
            made.append(v @ ((q.mT @ k) / math.sqrt(head)).softmax(-1).mT)
        y = F.conv1d(torch.cat(made, dim=1), self.w[f"{name}.proj_out.weight"], self.w[f"{name}.proj_out.bias"])
        return x + y.unflatten(2, x.shape[2:])

    def text(self, tokens: Tensor) -> Tensor:
        padding = (tokens == self.of.vocabulary - 1)[..., None]
        x = self.w["token_embedding.weight"][tokens] + self.w["positional_embedding"]
        x = torch.where(padding, self.w["padding_embedding"], x)
        head = self.of.text // self.of.text_heads
        for n in range(self.of.text_depth):
            block = f"transformer.resblocks.{n}"
            qkv, made = self.linear(f"{block}.attn.c_qkv", self.layer_norm(f"{block}.ln_1", x)), []
            for k in range(self.of.text_heads):
                q, key, v = qkv[..., 3 * head * k : 3 * head * (k + 1)].chunk(3, dim=-1)
                made.append(((q @ key.mT) / math.sqrt(head)).softmax(-1) @ v)
            x = x + self.linear(f"{block}.attn.c_proj", torch.cat(made, dim=-1))
            hidden = F.gelu(self.linear(f"{block}.mlp.c_fc", self.layer_norm(f"{block}.ln_2", x)))
            x = x + self.linear(f"{block}.mlp.c_proj", hidden)
        return self.layer_norm("final_ln", x)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, self.of.groups, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])
