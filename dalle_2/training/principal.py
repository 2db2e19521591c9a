"""The directions in which image embeddings differ most.

An image embedding has more numbers than a scene has properties; along most directions there is next to nothing, which a
prior would have to invent all the same. So it works in the principal directions (DALL·E 2 paper, section 2.2).
"""

import numpy as np
from jaxtyping import Float

from dalle_2.errors import UsageError


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
