"""Between CLIP and the later stages: every picture and caption embedded once, and the space they lie in measured."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import data_fingerprint
from dalle_2.data.embeddings import EmbeddingStore, build_store, store_folder
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.training.principal import principal

LEAST_STD = 1e-4
BASIS_DIGITS = 7
MEASURED = 50_000


def embed(
    encoder: CLIPEncoder,
    dataset: AbsDataset,
    folder: Path,
    *,
    count: int,
    encoder_id: str,
    on_begin: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EmbeddingStore:
    """The embeddings of the first `count` examples, from the disk where they were computed before.

    on_begin, on_progress: told `(done, count)` before the first and after each chunk that is computed now. Raises
    DataError for embeddings that are not what was written.
    """

    def encode(rows: range) -> tuple[object, object]:
        examples = [dataset[row] for row in rows]
        pictures = [Image.fromarray(example.image) for example in examples]
        return encoder.encode_images(pictures), encoder.encode_text([example.caption for example in examples])

    data_id = data_fingerprint(dataset)
    store = build_store(
        store_folder(folder, encoder_id, data_id), count, encode, dim=encoder.dim, encoder_id=encoder_id,
        data_id=data_id, data_name=dataset.name, on_begin=on_begin, on_progress=on_progress,
    )  # fmt: skip
    store.verify()  # a single number that the disk has changed would be the scale of all
    return store


def measured_space(rows: np.ndarray, *, normalised: bool, directions: int | None = None) -> EmbeddingSpace:
    """The space whose whitening brings these embeddings to mean 0 and standard deviation 1.

    In every dimension; or, where there are more than `directions`, in that many principal ones, and over all of them
    together: what is wide there decides what a scene is, and stays wide, so that noise covers it last.
    """
    sample = rows[:: max(1, len(rows) // MEASURED)].astype(np.float64)
    seen = EmbeddingSpace(dim=rows.shape[1], normalised=normalised)
    if directions is None or directions >= seen.dim:
        return whitened(seen, sample, np.maximum(sample.std(axis=0), LEAST_STD))
    basis = principal(sample, directions).round(BASIS_DIGITS)
    seen = seen.model_copy(update={"basis": tuple(map(tuple, basis.tolist()))})
    sample = seen.to_model(torch.from_numpy(sample)).numpy()
    return whitened(seen, sample, np.full(directions, np.sqrt(sample.var(axis=0).mean())))


def whitened(space: EmbeddingSpace, seen: Float[np.ndarray, "n k"], std: Float[np.ndarray, "k"]) -> EmbeddingSpace:
    """The space with the mean of what a network sees of some embeddings, and these deviations."""
    return space.model_copy(update={"mean": tuple(seen.mean(axis=0).tolist()), "std": tuple(std.tolist())})
