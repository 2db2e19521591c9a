"""Connected regions of a mask, found by joining the runs of neighbouring rows."""

import numpy as np
from jaxtyping import Bool, Int


def label(mask: Bool[np.ndarray, "h w"], max_runs: int = 6000) -> Int[np.ndarray, "h w"] | None:
    """Numbers the regions of the mask from 1, pixels joined by side or corner; 0 elsewhere.

    None where the mask falls into more than `max_runs` horizontal runs: noise, not regions.
    """
    height, width = mask.shape
    edges = np.zeros((height, width + 2), np.int8)
    edges[:, 1:-1] = mask
    steps = np.diff(edges, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    if len(rows) > max_runs:
        return None
    owners = _join(rows.tolist(), starts.tolist(), ends.tolist())
    labels = np.zeros((height, width), np.int64)
    # Runs are sorted as the pixels of the mask are, so the numbers can be poured in.
    labels[mask] = np.repeat(np.unique(owners, return_inverse=True)[1] + 1, ends - starts)
    return labels


def _join(rows: list[int], starts: list[int], ends: list[int]) -> list[int]:
    """The root of every run, after joining runs of adjacent rows that touch."""
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0
    for run, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and ends[above] < starts[run]):
            above += 1
        other = above
        while rows[other] == row - 1 and starts[other] <= ends[run]:
            parent[root(other)] = root(run)
            other += 1
    return [root(run) for run in range(len(rows))]
