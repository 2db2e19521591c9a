"""The directions in which image embeddings differ most.

An image embedding has more numbers than a scene has properties; along most directions there is next to nothing, which a
prior would have to invent all the same. So it works in the principal directions (DALL·E 2 paper, section 2.2).
"""

import numpy as np
from jaxtyping import Float

from dalle_2.errors import UsageError

RANK = 1e-10  # directions that hold less than this share of the widest hold nothing but rounding


def principal(rows: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "{count} d"]:
    """The `count` principal directions of the rows, orthonormal, the widest first.

    Each points where its largest number is positive. Raises UsageError for a count outside 1 ... d.
    """
    if not 1 <= count <= rows.shape[1]:
        raise UsageError(f"an embedding of {rows.shape[1]} numbers can't keep {count} directions")
    centred = rows - rows.mean(0)
    directions = np.linalg.eigh(centred.T @ centred)[1].T[::-1][:count]
    largest = np.abs(directions).argmax(axis=1)
    return directions * np.sign(directions[np.arange(count), largest])[:, None]


def spanning(rows: Float[np.ndarray, "n d"], count: int, explained: float | None = None) -> Float[np.ndarray, "k d"]:
    """Principal directions, the widest first, that rows can be rebuilt from without their mean.

    Of all the ways to keep `count` directions this loses least of the rows in the mean square. Fewer are kept where the
    others hold nothing, or, with `explained`, where fewer leave less than 1 - explained of the variance unexplained.
    The mean itself needs no place beside them: embeddings that lie in a cone fill its direction first of all.

    Raises UsageError for a count below 1, and a share outside (0, 1).
    """
    if count < 1 or (explained is not None and not 0 < explained < 1):
        raise UsageError(f"got {count} directions and a share of {explained}: keep at least 1, explain between 0 and 1")
    lengths, directions = np.linalg.eigh(rows.T @ rows)
    lengths, directions = lengths[::-1].clip(min=0), directions.T[::-1]
    left = lengths.sum() - lengths.cumsum()
    enough = RANK * lengths[0] if explained is None else (1 - explained) * rows.var(axis=0).sum() * len(rows)
    kept = directions[: min(count, int((left > enough).sum()) + 1)]
    return principal(rows @ kept.T, len(kept)) @ kept
