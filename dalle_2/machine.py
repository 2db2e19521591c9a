"""What this machine can do, found without torch: processors, instructions, NVIDIA devices, default dtype."""

import os
import platform
import shutil
import time
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Literal

DtypeName = Literal["float32", "bfloat16", "float16"]

# The compute capabilities of NVIDIA's devices that multiply such matrices: Ampere's, Volta's.
BFLOAT16_SINCE, FLOAT16_SINCE = (8, 0), (7, 0)

# Instructions that multiply bfloat16 matrices; without them bfloat16 is emulated and slower than float32.
AMX = "amx_bf16"  # by whole tiles: any training gains
BF16_FLAGS = (AMX, "avx512_bf16")
Trained = Literal["transformer", "convolutions"]
MATRIX_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)


def default_dtype(
    device: str = "cpu",
    *,
    capability: tuple[int, int] | None = None,
    trains: Trained | None = None,
    large: bool = False,
    flags: Collection[str] | None = None,
) -> DtypeName:
    """What a dtype of "auto" stands for: the smaller dtype that the hardware multiplies fast, else float32.

    device: "cpu", "cuda", "cuda:1", "mps"; capability: that of the CUDA device; flags: the processor's instructions,
    by default this one's. trains: what is trained, None for sampling. large: whether what is sampled from has hundreds
    of millions of weights. Without a graphics card sampling from small networks, in small batches, gains nothing from
    bfloat16; from large ones it does where the processor multiplies tiles, as does training, of transformers already
    with fewer instructions.
    """
    if device.startswith("cuda"):
        return _cuda_dtype(capability or (0, 0))
    if device != "cpu" or not (trains or large):
        return "float32"
    known = cpu_flags() if flags is None else flags
    helpful = BF16_FLAGS if trains == "transformer" else (AMX,)
    return "bfloat16" if any(flag in known for flag in helpful) else "float32"


def _cuda_dtype(capability: tuple[int, int]) -> DtypeName:
    if capability >= BFLOAT16_SINCE:
        return "bfloat16"
    return "float16" if capability >= FLOAT16_SINCE else "float32"


@cache
def cpu_flags() -> tuple[str, ...]:
    """Those of MATRIX_FLAGS that the processor has; empty where the system doesn't tell."""
    found = set(_cpuinfo("flags").split())
    return tuple(flag for flag in MATRIX_FLAGS if flag in found)


def cpu_name() -> str:
    """The processor as the system calls it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def usable_cpus() -> int:
    """How many processors this process may keep busy: its affinity, and the quota of its container."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, cpu_quota() or affinity))


def cpu_quota() -> int | None:
    """The processors a control group grants this process, rounded up; None if it sets no limit."""
    quota, period = _cgroup_limit()
    return -(-quota // period) if quota > 0 and period > 0 else None


def process_age() -> float | None:
    """Seconds since this process began, in hundredths; None where the system doesn't tell."""
    try:
        # After the name, which may hold anything, the 22nd field is counted from the third.
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began if began > 0 else None
    except (OSError, ValueError, AttributeError):
        return None


def has_nvidia() -> bool:
    """True if the system shows an NVIDIA device or its driver's tool."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _cgroup_limit() -> tuple[int, int]:
    """Microseconds of processor time granted in each period of microseconds; (0, 0) for no limit."""
    root = Path("/sys/fs/cgroup")
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        return int(quota), int(period)
    except (OSError, ValueError):  # no control groups, or the word "max"
        return 0, 0


@cache
def _cpuinfo(key: str) -> str:
    """The first value of a key in Linux's description of its processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
