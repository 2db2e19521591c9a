"""The directions of image embeddings that captions speak of."""

import numpy as np
import pytest
import torch

from dalle_2.errors import UsageError
from dalle_2.training.embed import measured_space
from dalle_2.training.foretold import foretold

ROWS, DIM, SAID = 20_000, 12, 4


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image embeddings in which captions foretell four hidden directions, of small variance, and nothing else."""
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    said, free = rng.normal(size=(ROWS, SAID)), rng.normal(size=(ROWS, DIM - SAID))
    image = np.concatenate([said * [0.4, 0.3, 0.2, 0.1], free], axis=1) @ turned + 0.5
    text = said @ rng.normal(size=(SAID, DIM)) + 0.01 * rng.normal(size=(ROWS, DIM))
    return image, text, turned[:SAID]


def test_it_finds_what_captions_say_below_greater_variance() -> None:
    image, text, hidden = pairs()
    found = foretold(image, text, SAID)
    assert np.allclose(found @ found.T, np.eye(SAID), atol=1e-9)
    assert np.linalg.svd(found @ hidden.T)[1].min() > 0.98
    principal = np.linalg.svd(image - image.mean(0), full_matrices=False)[2][:SAID]
    assert np.linalg.svd(principal @ hidden.T)[1].max() < 0.1


def test_the_embeddings_are_uncorrelated_along_them_the_widest_first() -> None:
    image, text, _ = pairs()
    found = foretold(image, text, 6)
    covariance = np.cov(image @ found.T, rowvar=False)
    assert np.allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)
    assert (np.diff(np.diag(covariance)) <= 0).all()


def test_a_measured_space_whitens_along_them() -> None:
    image, text, _ = pairs()
    space = measured_space(image, normalised=False, basis=foretold(image, text, SAID))
    seen = space.to_model(torch.from_numpy(image))
    assert seen.shape == (ROWS, SAID)
    assert np.allclose(np.cov(seen.numpy(), rowvar=False), np.eye(SAID), atol=1e-3)
    assert np.allclose(seen.mean(0), 0, atol=1e-6)


@pytest.mark.parametrize("count", [0, DIM + 1])
def test_more_directions_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"12 numbers can't keep {count} directions"):
        foretold(*pairs()[:2], count)
