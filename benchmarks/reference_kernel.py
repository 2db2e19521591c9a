"""The reference kernel that stands beside every speed figure: what this machine gives at this minute.

    python benchmarks/reference_kernel.py

A 3 × 3 convolution, 320 to 320 channels, batch 8, 32 × 32, channels-last, forward only. It needs torch alone.
"""

import argparse
import statistics
import time

import torch
from report import show
from torch import nn

CHANNELS, BATCH, SIDE = 320, 8, 32
FLOPS = 2 * BATCH * SIDE * SIDE * CHANNELS * CHANNELS * 9


@torch.no_grad()
def reference_gflops(dtype: torch.dtype = torch.float32, *, seconds: float = 1.0) -> float:
    """GFLOP/s of the reference kernel: the median over `seconds`, and over five runs at least."""
    convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        convolution(x)
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        convolution(x)
        times.append(time.perf_counter() - start)
    return FLOPS / statistics.median(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description="GFLOP/s of the reference convolution.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="five runs only: a smoke test, not a figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = 0.0 if arguments.quick else 5.0
    figures = {
        str(dtype).removeprefix("torch."): reference_gflops(dtype, seconds=seconds)
        for dtype in (torch.float32, torch.bfloat16)
    }
    rows = [{"dtype": name, "GFLOP/s": value} for name, value in figures.items()]
    show(rows, {"kernel": "3x3 convolution 320 to 320, batch 8, 32x32, channels-last", "gflops": figures})


if __name__ == "__main__":
    main()
