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
from dalle_2.training.foretold import foretold

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

    on_begin, on_progress: told `(done, count)` before the first and after each chunk that is computed now.
    """

    def encode(rows: range) -> tuple[object, object]:
        examples = [dataset[row] for row in rows]
        pictures = [Image.fromarray(example.image) for example in examples]
        return encoder.encode_images(pictures), encoder.encode_text([example.caption for example in examples])

    data_id = data_fingerprint(dataset)
    return build_store(
        store_folder(folder, encoder_id, data_id), count, encode, dim=encoder.dim, encoder_id=encoder_id,
        data_id=data_id, data_name=dataset.name, on_begin=on_begin, on_progress=on_progress,
    )  # fmt: skip


def image_space(store: EmbeddingStore, *, normalised: bool, directions: int | None = None) -> EmbeddingSpace:
    """The measured space of a store's image embeddings, all of it or the `directions` that captions foretell best."""
    basis = None if directions is None else foretold(thinned(store.z_img), thinned(store.z_txt), directions)
    return measured_space(store.z_img, normalised=normalised, basis=basis)


def measured_space(
    rows: np.ndarray, *, normalised: bool, basis: Float[np.ndarray, "k d"] | None = None
) -> EmbeddingSpace:
    """The space whose whitening brings these embeddings to mean 0 and standard deviation 1 in every direction.

    basis: the directions that a network will see; by default the dimensions.
    """
    sample = thinned(rows)
    kept = None if basis is None else tuple(map(tuple, basis.round(BASIS_DIGITS).tolist()))
    seen = EmbeddingSpace(dim=rows.shape[1], normalised=normalised, basis=kept)
    sample = seen.to_model(torch.from_numpy(sample)).numpy()
    std = np.maximum(sample.std(axis=0), LEAST_STD)
    return seen.model_copy(update={"mean": tuple(sample.mean(axis=0).tolist()), "std": tuple(std.tolist())})


def thinned(rows: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Enough of the rows to measure them, evenly spread, in float64."""
    return rows[:: max(1, len(rows) // MEASURED)].astype(np.float64)
