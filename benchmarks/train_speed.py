"""The training speed of one side, measured by one process of its own.

    .venv-peers/bin/python benchmarks/train_speed.py --stage decoder --side theirs --dtype float32

One step is what benchmarks/training_step.py says; the batch is made beforehand. compare_training.py alternates two
such processes: a ratio of two separate figures, taken at different minutes, says little.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from reference_kernel import reference_gflops
from report import show
from sides import BATCH, STAGES, Side, Stage, build, random_batch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_step import DTYPES, TrainingStep


def measure(side: str, stage: Stage, *, dtype: str, batch: int, seconds: float, steps: int) -> dict[str, Any]:
    """Speed, size and work of one side: at least `steps` steps and `seconds` seconds after one to warm up."""
    dtype = default_dtype(side, stage) if dtype == "default" else dtype
    built = build(side, stage)  # type: ignore[arg-type]
    flops = flops_per_picture(built)
    before = reference_gflops(DTYPES[dtype], seconds=0.5)
    times = step_times(built, dtype=dtype, batch=batch, seconds=seconds, steps=steps)
    speed = batch / statistics.median(times)
    return {
        "stage": stage,
        "side": side,
        "dtype": dtype,
        "batch": batch,
        "steps": len(times),
        "parameters": parameter_count(built.model),
        "gflop_per_picture": flops / 1e9,
        "pictures_per_second": speed,
        "gflops": speed * flops / 1e9,
        "reference_gflops": (before + reference_gflops(DTYPES[dtype], seconds=0.5)) / 2,
    }


def step_times(side: Side, *, dtype: str, batch: int, seconds: float, steps: int) -> list[float]:
    pairs = random_batch(batch)
    step = TrainingStep(side.model, dtype=dtype)
    times: list[float] = []
    while len(times) < steps + 1 or sum(times[1:]) < seconds:
        start = time.perf_counter()
        step(lambda: side.loss(pairs))
        times.append(time.perf_counter() - start)
    return times[1:]


def flops_per_picture(side: Side) -> float:
    """Counted FLOPs of one forward and backward pass, a picture."""
    pairs = random_batch(2)
    with flop_counter() as counter:
        side.loss(pairs).backward()
    side.model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(pairs)


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """PyTorch's counter, with attention as matrix products: it doesn't know the processor's fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def default_dtype(side: str, stage: Stage) -> str:
    """What `dalle2 train` would choose for ours on this processor; float32, their trainers' default, for theirs."""
    from dalle_2.training.precision import choose_dtype

    if side == "theirs":
        return "float32"
    return str(choose_dtype("auto", torch.device("cpu"), transformer="prior" in stage)).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed of one side.")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--side", choices=("ours", "theirs"), required=True)
    parser.add_argument("--dtype", choices=("default", *DTYPES), default="default")
    parser.add_argument("--batch", type=int, help="by default 16 for decoders, 64 for priors")
    parser.add_argument("--seconds", type=float, default=20.0, help="least time to measure for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one small step: a smoke test, not a figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(
        arguments.side,
        arguments.stage,
        dtype=arguments.dtype,
        batch=2 if arguments.quick else arguments.batch or BATCH[arguments.stage],
        seconds=0.0 if arguments.quick else arguments.seconds,
        steps=1 if arguments.quick else 3,
    )
    show([result], result)


if __name__ == "__main__":
    main()
