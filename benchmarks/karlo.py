"""Karlo at full size against diffusers: parity, seconds a picture, memory, and the wait for the first step.

    python benchmarks/karlo.py --folder FOLDER            # 14 GB of disk; what is built there is used again
    python benchmarks/karlo.py --tiny --folder FOLDER     # the script itself, in seconds: no figures

The weights are random: speed, memory and parity don't depend on what they say. `--only` runs single sections:

parity    each part in float32: max |a - b| / max |b|
speed     alternating steps of each part, both sides in memory; the first pair is dropped. Ours has one step that reads
          the condition and further ones that don't; a picture takes 25 steps of the prior, 25 of the decoder and 7 of
          super-resolution, the last by a network of its own. GFLOP/s of the further steps by PyTorch's counter, which
          counts convolutions as the sums that they are also where ours needs fewer products, and their share of the
          reference kernel (reference_kernel.py) in our dtype, measured in the same minute
memory    the most anonymous and shared memory of a process that draws a picture in two steps a stage, and with mapped
          files, which hold the weights of both sides; ours also where its copies in bfloat16 are yet to be written
first     from the command to the end of the prior's first step: copies yet to be written, files in the page cache, not
          there
compile   the decoder and super-resolution through torch.compile: the first step, and the ratio of the later ones
whole     one whole picture each
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from karlo_parts import GUIDANCE, PARTS, PROMPT, STEPS, Given, build, their_pipeline, theirs
from reference_kernel import reference_gflops
from report import say, show, spread
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dalle_2
from dalle_2.copies import forget
from dalle_2.models.layers import residual
from dalle_2.models.layers.conv3x3 import Conv3x3
from dalle_2.models.rest import at_work

SECTIONS = ("parity", "speed", "memory", "first", "compile", "whole")
# Our dtype against theirs; "auto" is what a person gets.
MODES = (("fp32", torch.float32), ("bf16", torch.bfloat16), ("auto", torch.float32))
Step = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description="Karlo against diffusers.")
    parser.add_argument("--folder", type=Path, help="where the checkpoint lies or is built; else a temporary one")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS[:-1])
    parser.add_argument("--tiny", action="store_true", help="small networks: a smoke test")
    parser.add_argument("--modes", choices=[mode for mode, _ in MODES], nargs="+", help="of the section speed")
    parser.add_argument("--pairs", type=int, default=6, help="of alternating steps; the first is dropped")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=("ours", "low-memory", "theirs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        sys.stdout.write(json.dumps(drawn(arguments.child, arguments.folder)) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "karlo"
        build(folder, tiny=arguments.tiny)
        os.environ["XDG_CACHE_HOME"] = str(folder / "copies")
        for section in arguments.only:
            say(f"{section} ...")
            rows = {
                "parity": parity, "speed": lambda home: speed(home, arguments.pairs, arguments.modes),
                "memory": lambda home: memory(home, arguments.threads), "first": first, "compile": compiled,
                "whole": whole,
            }[section](folder)  # fmt: skip
            show(rows, {"section": section, "tiny": arguments.tiny, "rows": rows})


# Parity


@torch.no_grad()
def parity(folder: Path) -> list[dict[str, Any]]:
    """The error of each part, one side in memory at a time."""
    given, rows = Given.of(folder), []
    pipeline = dalle_2.load(folder, device="cpu", dtype="fp32", low_memory=True)
    for name in PARTS:
        wanted = theirs(name, folder, torch.float32, given)()
        answer = ours(name, pipeline, given)
        error = float((answer - wanted).abs().max() / wanted.abs().max())
        rows.append({"part": name, "error": error, "target": 1e-4})
    return rows


def ours(name: str, pipeline: Any, given: Given) -> Tensor:
    """One forward of a part, for two rows."""
    if name == "text_encoder":
        return pipeline.clip_encoder.encode_text(["", PROMPT])
    if name == "image_encoder":
        model = pipeline.clip_encoder.model
        with at_work(model.vision):
            return model.encode_image(given.seen(model.image_size))
    if name.startswith("super_res"):
        model, t = pipeline.upsamplers[0], given.t[1:]
        with at_work(model, model.last):
            if name == "super_res_last":
                return model.last(given.large, t, None, given.enlarged)
            return model(given.large, given.small[1:], None, model.embed(t))
    model = getattr(pipeline, name)
    first = (given.embeds, given.z) if name == "prior" else (given.small, given.z)
    with at_work(model):
        return model(*first, model.time(given.t), tokens=given.ids)


# Speed


@torch.no_grad()
def speed(folder: Path, pairs: int, modes: Sequence[str] | None) -> list[dict[str, Any]]:
    """Alternating steps of each part in each mode, by default all, and what a picture takes."""
    given, rows = Given.of(folder), []
    for mode, dtype in MODES:
        if modes and mode not in modes:
            continue
        both = [part_speed(folder, stage, mode, dtype, given, pairs) for stage in STEPS]
        total = {name: sum(row[name] for row in both) for name in ("ours, s", "theirs, s")}
        ratio = total["ours, s"] / total["theirs, s"]
        blank = dict.fromkeys(both[0], "")
        rows += [*both, {**blank, "part": "picture", "ours": both[0]["ours"], **total, "ratio": ratio}]
    return rows


def part_speed(
    folder: Path, stage: str, mode: str, dtype: torch.dtype, given: Given, pairs: int
) -> dict[str, Any]:
    """One part: seconds a picture on both sides, the ratio, and the rate of computing in the steps after the first."""
    pipeline = dalle_2.load(folder, device="cpu", dtype=mode)
    step = theirs("super_res_first" if stage == "super_res" else stage, folder, dtype, given, guided=True)
    with working(pipeline, stage) as model:
        peer = torch.autocast("cpu", enabled=False)(step)  # in its weights' dtype, whatever ours computes in
        seconds: list[tuple[float, float]] = []
        for _ in range(pairs):
            steps = our_steps(model, stage, given)
            took = {name: timed(step) for name, step in steps.items()}
            own = took["first"] + (STEPS[stage] - 2) * took["next"] + took["last"]
            seconds.append((own, STEPS[stage] * timed(peer)))
        flops = {"ours": counted(steps["next"]), "theirs": counted(peer)}
    kernel = reference_gflops(pipeline.dtype)
    kept = seconds[1:] or seconds
    ratios = spread([a / b for a, b in kept])
    rate = flops["ours"] / took["next"] / 1e9
    return {
        "part": stage, "ours": str(pipeline.dtype).removeprefix("torch."), "theirs": str(dtype).removeprefix("torch."),
        "ours, s": spread([a for a, _ in kept])["median"], "theirs, s": spread([b for _, b in kept])["median"],
        "ratio": ratios["median"], "range": f"{ratios['low']:.2f} to {ratios['high']:.2f}",
        "GFLOP a step": flops["ours"] / 1e9, "their GFLOP": flops["theirs"] / 1e9,
        "GFLOP/s": rate, "reference": kernel, "share": rate / kernel,
    }  # fmt: skip


@contextmanager
def working(pipeline: Any, stage: str) -> Iterator[Any]:
    """A part with its weights, the only one that is read, computing as in the pipeline."""
    model = pipeline.upsamplers[0] if stage == "super_res" else getattr(pipeline, stage)
    with torch.autocast("cpu", pipeline.dtype, enabled=pipeline.dtype != torch.float32):
        yield model


def our_steps(model: Any, stage: str, given: Given) -> dict[str, Step]:
    """The first step of a picture, one like those after it, and the last. To be called in that order."""
    if stage == "super_res":
        denoise, x = model.denoiser(None, low_res=given.small[1:]), given.large
    elif stage == "prior":
        denoise = Lazy(lambda: model.denoiser(given.embeds[1:], tokens=given.ids[1:], guidance=GUIDANCE[stage]))
        x = given.z[1:]
    else:
        denoise = Lazy(lambda: model.denoiser(given.z[1:], tokens=given.ids[1:], guidance=GUIDANCE[stage]))
        x = given.small[1:]
    times = {"first": 999, "next": 500, "last": 0}
    return {name: lambda t=t: denoise(x, torch.tensor([t])).x_0 for name, t in times.items()}


class Lazy:
    """A denoiser made when it is first called, so that reading the caption counts as part of the first step."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.denoise = make, None

    def __call__(self, x: Tensor, t: Tensor) -> Any:
        self.denoise = self.denoise or self.make()
        return self.denoise(x, t)


def timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def counted(step: Step) -> float:
    """The operations of a step, those of convolutions as the sum is written, whatever way they are computed."""
    plain = patch.object(Conv3x3, "forward", nn.Conv2d.forward), patch.object(residual, "pays", return_value=False)
    with plain[0], plain[1], FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


# Memory


def memory(folder: Path, threads: int) -> list[dict[str, Any]]:
    """The peak of each side in a process of its own, and its ratio to diffusers'."""
    rows, anew = [], " with copies to write"
    for row in ("theirs", f"ours{anew}", f"low-memory{anew}", "ours", "low-memory"):
        if row.endswith(anew):
            forget()
        side = row.removesuffix(anew)
        command = [sys.executable, __file__, "--child", side, "--folder", str(folder), "--threads", str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append({"side": row, **json.loads(done.stdout.splitlines()[-1])})
        own = {name: value for name, value in rows[-1].items() if name != "side"}
        rows[-1] |= {name.replace("GiB", "ratio"): value / rows[0][name] for name, value in own.items()}
    return rows


def drawn(side: str, folder: Path) -> dict[str, float]:
    """Draws a picture in two steps a stage and watches this process's memory."""
    peaks = {"RssAnon": 0.0, "RssShmem": 0.0, "RssFile": 0.0, "anonymous": 0.0, "resident": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            fields = (line.partition(":") for line in lines)
            now = {name: float(rest.split()[0]) / 2**20 for name, _, rest in fields if name in peaks}
            now["anonymous"] = now["RssAnon"] + now["RssShmem"]
            now["resident"] = now["anonymous"] + now["RssFile"]
            peaks.update({name: max(peaks[name], value) for name, value in now.items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    picture(side, folder, 2)
    ended.set()
    watcher.join()
    return {"anonymous, GiB": peaks["anonymous"], "resident, GiB": peaks["resident"]}


def picture(side: str, folder: Path, steps: int | None = None) -> None:
    """One picture; in so many steps a stage, by default Karlo's own number."""
    if side == "theirs":
        counts = {"prior": steps or 25, "decoder": steps or 25, "super_res": steps or 7}
        their_pipeline(folder)(PROMPT, **{f"{name}_num_inference_steps": count for name, count in counts.items()})
        return
    pipeline = dalle_2.load(folder, device="cpu", low_memory=side == "low-memory")
    pipeline.generate([PROMPT], steps, seeds=0)


# The wait for the first step


def first(folder: Path) -> list[dict[str, Any]]:
    """Seconds from the command to the end of the prior's first step; once anew, three times warm, then once cold."""
    for path in folder.rglob("*.safetensors"):
        path.read_bytes()  # so that the first time, too, the files are in the page cache
    forget()
    rows = [{"files": "in the page cache, copies to write", "seconds": wait(folder), "target": 15}]
    warm = [wait(folder) for _ in range(3)]
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    rows.append({"files": "in the page cache", "seconds": spread(warm)["median"], "target": 15})
    return [*rows, {"files": "not there", "seconds": wait(folder), "target": ""}]


def wait(folder: Path) -> float:
    """`dalle2 generate` with one step of the prior, ended when it says that this is done."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "dalle_2", "generate", PROMPT, "--pipeline", str(folder), "--device", "cpu"]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--prior-steps", "1", "--out", out], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        heard = next((line for line in process.stderr if line.startswith("prior:")), None)
        seconds = time.perf_counter() - start
        process.send_signal(signal.SIGINT)  # after which copies that were written are brought to the disk
        process.communicate()
    if heard is None:
        raise RuntimeError("dalle2 generate ended before the prior's first step")
    return seconds


# Compiled


@torch.no_grad()
def compiled(folder: Path) -> list[dict[str, Any]]:
    """The first step through torch.compile, and the median of later ones beside the plain network's."""
    given, rows = Given.of(folder), []
    for stage in ("decoder", "super_res"):
        took: dict[bool, list[float]] = {}
        for wish in (False, True):
            pipeline = dalle_2.load(folder, device="cpu", compiled=wish)
            with working(pipeline, stage) as model:
                steps = our_steps(model, stage, given)
                took[wish] = [timed(steps["first"]), *(timed(steps["next"]) for _ in range(5))]
        plain, fast = (spread(took[wish][1:])["median"] for wish in (False, True))
        rows.append({"part": stage, "plain, s": plain, "compiled, s": fast, "ratio": fast / plain})
        rows[-1]["warm-up, s"] = took[True][0] - fast
    return rows


def whole(folder: Path) -> list[dict[str, Any]]:
    """One whole picture each, loading apart from nothing."""
    return [{"side": side, "seconds": timed(lambda side=side: picture(side, folder))} for side in ("ours", "theirs")]


if __name__ == "__main__":
    main()
