"""What tiles save, and what they cost: a picture of 1024 px from one of 256, whole and in tiles.

    python benchmarks/tiling.py --pipeline trained_models/shapes-1024

Memory is what a process grew by at its highest while it sampled (resident set), and the numbers in the largest tensor
that a layer gave. The two sides alternate as processes of their own, the first pair is dropped. Without --pipeline the
upsampler has the settings of shapes-1024 and weights that know nothing, which makes its seams no figure.

A seam is a step that the whole picture doesn't have: in the difference of the two results the mean step, in levels of
255, between the pixels on both sides of a line along which some tile begins, ends or fades. Beside the largest of them
stands the largest along any other line.

`--patch 1` takes an untrained upsampler that folds no pixels into channels, as the paper's don't: 16 times the work.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from reference_kernel import reference_gflops
from report import say, show, spread
from torch import Tensor

import dalle_2
from dalle_2.data.shapes import Shapes
from dalle_2.images import from_pil
from dalle_2.models.upsampler import Upsampler
from dalle_2.presets import preset
from dalle_2.sampling.tiling import spans

SMALL, LARGE = 256, 1024
MIB = 2**20


def chosen(arguments: argparse.Namespace) -> Upsampler:
    """The pipeline's last upsampler, or an untrained one with noise in its silent layers."""
    if arguments.pipeline is not None:
        return dalle_2.load(arguments.pipeline, device="cpu").upsamplers[-1]
    stage = preset("shapes-1024").upsampler_2
    assert stage is not None
    unet = stage.config.unet.model_copy(update={"patch": arguments.patch})
    torch.manual_seed(0)
    model = Upsampler.from_config(stage.config.model_copy(update={"unet": unet})).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def small_picture() -> Tensor:
    """A scene that the pipeline has not seen, at the upsampler's input size."""
    from PIL import Image

    return from_pil(Image.fromarray(Shapes(SMALL, 1, seed=9)[0].image))[None]


def resident() -> float:
    """The most memory that this process ever held, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (MIB if sys.platform == "darwin" else 1024)


def one_side(arguments: argparse.Namespace) -> None:
    """What a process of one side does: samples once, tells seconds and memory, leaves the picture."""
    torch.set_num_threads(arguments.threads)
    model, low_res, largest = chosen(arguments), small_picture(), [0]
    for module in model.network.modules():
        module.register_forward_hook(lambda _, inputs, y: largest.append(max(largest.pop(), y.numel())))
    before, start = resident(), time.perf_counter()
    tile = arguments.tile if arguments.side == "tiles" else LARGE
    x = model.sample(None, low_res, arguments.steps, seeds=[0], tile=tile, overlap=arguments.overlap)
    seconds = time.perf_counter() - start
    torch.save(x, arguments.out)
    figures = {"seconds": seconds, "MiB": resident() - before, "largest": largest[0], "reference": reference_gflops()}
    sys.stdout.write(json.dumps(figures) + "\n")


def run(side: str, arguments: argparse.Namespace, out: Path) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--out", str(out), "--tile", str(arguments.tile)]
    for name in ("overlap", "threads", "patch", "pipeline", "steps"):
        value = getattr(arguments, name)
        command += [] if value is None else [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}: {done.stderr.strip()}")
    figures = json.loads(done.stdout.splitlines()[-1])
    say(f"{side}: {figures['seconds']:.1f} s, {figures['MiB']:.0f} MiB")
    return figures


def seams(difference: Tensor, model: Upsampler, tile: int, overlap: int) -> tuple[float, float]:
    """The largest mean step of the difference along lines where tiles meet, and along others, in levels of 255."""
    upright, lying = (one.diff(dim=-1).mean((0, 1, 2)).abs() * 127.5 for one in (difference, difference.mT))
    steps = torch.maximum(upright, lying)
    lines, tiling = torch.zeros(LARGE, dtype=torch.bool), model.tiling(tile, overlap)
    for left, right in pairwise(spans(LARGE, tiling)):
        lines[right.start - tiling.grid : left.pixels.stop + tiling.grid] = True
    return float(steps[lines[1:]].max()), float(steps[~lines[1:]].max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", help="a trained pipeline whose last upsampler makes 1024 px of 256")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--patch", type=int, default=4, help="pixels that an untrained upsampler folds")
    parser.add_argument("--steps", type=int, help="by default the upsampler's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two pairs: a smoke test, not a figure")
    parser.add_argument("--side", choices=["whole", "tiles"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments)
        return
    pairs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2 if arguments.quick else 6):
            pairs.append({side: run(side, arguments, Path(folder) / side) for side in ("whole", "tiles")})
        whole, tiles = (torch.load(Path(folder) / side) for side in ("whole", "tiles"))
    report(pairs[1:], tiles - whole, arguments)


def report(pairs: list[dict[str, dict[str, float]]], difference: Tensor, arguments: argparse.Namespace) -> None:
    """The table and the line of JSON."""
    rows: list[dict[str, Any]] = []
    for side in ("whole", "tiles"):
        seconds, memory = (spread([pair[side][name] for pair in pairs]) for name in ("seconds", "MiB"))
        rows.append(
            {
                "how": side if side == "whole" else f"tiles of {arguments.tile}, overlap {arguments.overlap}",
                "seconds (range)": f"{seconds['median']:.1f} ({seconds['low']:.1f} to {seconds['high']:.1f})",
                "memory, MiB (range)": f"{memory['median']:.0f} ({memory['low']:.0f} to {memory['high']:.0f})",
                "largest tensor, million numbers": pairs[0][side]["largest"] / 1e6,
            }
        )
    ratio = spread([pair["tiles"]["seconds"] / pair["whole"]["seconds"] for pair in pairs])
    at_seams, elsewhere = seams(difference, chosen(arguments), arguments.tile, arguments.overlap)
    reference = spread([figures["reference"] for pair in pairs for figures in pair.values()])
    result = {
        "pipeline": arguments.pipeline, "pairs": pairs, "ratio of seconds": ratio, "reference GFLOP/s": reference,
        "largest seam, levels": at_seams, "largest step elsewhere, levels": elsewhere,
        "mean difference, levels": float(difference.abs().mean() * 127.5),
    }  # fmt: skip
    show(rows, result)


if __name__ == "__main__":
    main()
