"""The directions of image embeddings that captions speak of.

An image embedding holds much that no caption says: what lies where to the pixel, exact sizes, shades. A prior would
have to invent all of it, number by number, and a decoder that is used to finding it would follow every slip. The paper
leaves out the directions of least variance (section 2.2); here those stay that a text embedding foretells, and the
decoder, which knows space from its convolutions, invents the rest.
"""

import numpy as np
from jaxtyping import Float

from dalle_2.errors import UsageError

RIDGE = 1e-5


def foretold(
    z_img: Float[np.ndarray, "n d"], z_txt: Float[np.ndarray, "n e"], count: int
) -> Float[np.ndarray, "{count} d"]:
    """`count` orthonormal directions of image embeddings, in which the text embeddings of the same rows foretell most.

    They span the best forecast of that rank by a linear map (reduced-rank regression, Izenman 1975) and are turned so
    that the image embeddings are uncorrelated along them, the widest first. Raises UsageError for a count outside
    1 ... d.
    """
    if not 1 <= count <= z_img.shape[1]:
        raise UsageError(f"an embedding of {z_img.shape[1]} numbers can't keep {count} directions")
    image, text = z_img - z_img.mean(0), z_txt - z_txt.mean(0)
    covariance = text.T @ text
    covariance += RIDGE * np.linalg.eigvalsh(covariance)[-1] * np.eye(len(covariance))
    forecast = text @ np.linalg.solve(covariance, text.T @ image)
    span = principal(forecast)[:count]
    return principal(image @ span.T) @ span


def principal(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """The principal directions of centred rows, the widest first; each points where its largest number is positive."""
    directions = np.linalg.eigh(rows.T @ rows)[1].T[::-1]
    largest = np.abs(directions).argmax(axis=1)
    return directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
