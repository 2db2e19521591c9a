"""Drawing with the autoregressive prior, with and without its cache of keys and values, as BENCHMARKS.md reports it.

    python benchmarks/kv_cache.py

Both sides draw the same pictures' embeddings from the same seeds, alternately and in one process; the first pair is
dropped, each of the others gives one ratio. Without the cache the whole sequence is read anew for each component, the
last block for its last token alone. The tokens of both sides are compared. Beside the median ratio and its range stand
the GFLOP/s of the reference kernel, measured in the same minute. Nothing else should run on the machine.
"""

import argparse
import time
from typing import Any

import torch
from reference_kernel import reference_gflops
from report import say, show, spread
from torch import Tensor
from torch.nn.functional import normalize

from dalle_2.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle_2.models.embedding_space import EmbeddingSpace

DIM = 512
SIZES: dict[str, dict[str, int]] = {
    "width 512, depth 6, 319 components": {"width": 512, "depth": 6, "heads": 8, "components": 319},
    "tiny: width 256, depth 4, 96 components": {"width": 256, "depth": 4, "heads": 4, "components": 96},
}
ROWS = ((1, 4), (1, 4, 64))  # one picture, a pipeline's four, and four with 16 candidates each
QUICK = {"smoke test": {"width": 32, "depth": 1, "heads": 2, "components": 12}}


def built(width: int, depth: int, heads: int, components: int) -> AutoregressivePrior:
    """A prior with random weights, whose logits differ as much as a trained one's."""
    torch.manual_seed(0)
    basis = tuple(map(tuple, torch.eye(DIM)[:components].tolist()))
    space = EmbeddingSpace(dim=DIM, basis=basis, scale=DIM**0.5)
    sizes = {"width": width, "depth": depth, "heads": heads}
    model = AutoregressivePrior(AutoregressivePriorConfig(dim=DIM, space=space, **sizes)).eval()
    torch.nn.init.normal_(model.network.out.amplitudes.weight, std=width**-0.5)
    return model


def timed(model: AutoregressivePrior, z_txt: Tensor, guidance: float, *, cache: bool) -> tuple[float, Tensor]:
    """Seconds, and the embeddings drawn."""
    start = time.perf_counter()
    z = model.sample(z_txt, seeds=range(len(z_txt)), guidance=guidance, cache=cache)
    return time.perf_counter() - start, z


def run_pair(model: AutoregressivePrior, z_txt: Tensor, guidance: float, order: tuple[bool, bool]) -> dict[str, Any]:
    """Both sides once. Equal embeddings are equal tokens: each is the sum of its buckets' centres."""
    before = reference_gflops(seconds=0.3)
    done = {cache: timed(model, z_txt, guidance, cache=cache) for cache in order}
    (cached, with_cache), (uncached, without) = done[True], done[False]
    return {
        "cached": cached,
        "uncached": uncached,
        "ratio": uncached / cached,
        "same": int((with_cache == without).all(dim=1).sum()),
        "reference_gflops": (before + reference_gflops(seconds=0.3)) / 2,
    }


def run_pairs(
    name: str, model: AutoregressivePrior, z_txt: Tensor, guidance: float, count: int
) -> list[dict[str, Any]]:
    """The pairs that count; the side that goes first changes from pair to pair."""
    what, results = f"{name}, {len(z_txt)} rows, guidance {guidance:g}", []
    for number in range(count + 1):
        pair = run_pair(model, z_txt, guidance, (True, False) if number % 2 else (False, True))
        note = "" if number else " (dropped)"
        say(f"{what}, pair {number} of {count}: {pair['ratio']:.1f} times{note}")
        results.append(pair)
    return results[1:]


def row(name: str, rows: int, guidance: float, components: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    ratio, cached, uncached = (spread([pair[key] for pair in results]) for key in ("ratio", "cached", "uncached"))
    same = min(pair["same"] for pair in results)
    return {
        "network": name,
        "embeddings": rows,
        "guidance": f"{guidance:g}",
        "ratio (range)": f"{ratio['median']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f})",
        "cached, s": cached["median"],
        "uncached, s": uncached["median"],
        "cached, ms a component": 1000 * cached["median"] / components,
        "same tokens": f"{same} of {rows}",
        "reference GFLOP/s": spread([pair["reference_gflops"] for pair in results])["median"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Cached against uncached sampling of the autoregressive prior.")
    parser.add_argument("--rows", type=int, nargs="+", help="embeddings drawn at once; by default as in the table")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0], help="other than 1 doubles the rows")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one pair of a tiny network: a smoke test, not a figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes, count = (QUICK, 1) if arguments.quick else (SIZES, arguments.pairs)
    rows, results = [], []
    for (name, size), usual in zip(sizes.items(), ROWS, strict=False):
        model = built(**size)
        for many in arguments.rows or usual:
            z_txt = normalize(torch.randn(many, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
            for guidance in arguments.guidance:
                found = run_pairs(name, model, z_txt, guidance, count)
                rows.append(row(name, many, guidance, size["components"], found))
                results.append({"network": size, "rows": many, "guidance": guidance, "pairs": found})
    show(rows, {"results": results})


if __name__ == "__main__":
    main()
