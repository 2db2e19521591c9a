"""Between CLIP and the later stages: every picture and caption embedded once, and the space they lie in measured."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import data_fingerprint
from dalle_2.data.embeddings import EmbeddingStore, build_store, store_folder
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.embedding_space import EmbeddingSpace

LEAST_STD = 1e-4


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


def measured_space(rows: np.ndarray, *, normalised: bool) -> EmbeddingSpace:
    """The space whose whitening brings these embeddings to mean 0 and standard deviation 1 in every dimension."""
    sample = rows[:: max(1, len(rows) // 50_000)].astype(np.float64)
    std = np.maximum(sample.std(axis=0), LEAST_STD)
    return EmbeddingSpace(
        dim=rows.shape[1], normalised=normalised, mean=tuple(sample.mean(axis=0).tolist()), std=tuple(std.tolist())
    )
