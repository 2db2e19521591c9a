"""The stage of the autoregressive prior, on embeddings and, where it reads them, captions."""

from pathlib import Path

import numpy as np
import torch

from dalle_2.data.embeddings import EmbeddingPairs
from dalle_2.models.autoregressive_prior import AutoregressivePrior
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.training.embed import BASIS_DIGITS, LEAST_STD, MEASURED, whitened
from dalle_2.training.ground import Ground
from dalle_2.training.principal import spanning
from dalle_2.training.reading import reader_config, with_reader
from dalle_2.training.recipe import AutoregressivePriorStage


def train_autoregressive_prior(stage: AutoregressivePriorStage, ground: Ground, folder: Path) -> Path:
    """Trains an autoregressive prior; leaves its weight file in `folder`."""
    some = slice(None, None, max(1, len(ground.store) // MEASURED))
    z_img, z_txt = ground.store.batch(some)
    normalised = ground.encoder.space.normalised
    space = drawn_space(
        z_img.numpy(), normalised=normalised, directions=stage.directions, explained=stage.explained
    )
    text = reader_config(stage.caption, stage.text, ground)
    update = {"dim": ground.store.dim, "space": space, "text_space": ground.text_space, "caption": text}
    config = stage.config.model_copy(update=update)
    model = ground.built(lambda: with_reader(AutoregressivePrior.from_config(config), stage.caption, ground))
    model.fit_buckets(z_txt.to(ground.device), z_img.to(ground.device))
    return ground.run(model, stage.run, EmbeddingPairs(ground.store, ground.tokens if text else None), folder)


def drawn_space(
    rows: np.ndarray, *, normalised: bool, directions: int, explained: float | None = None
) -> EmbeddingSpace:
    """The principal directions of image embeddings, the widest first, each brought to mean 0 and deviation 1."""
    sample = rows.astype(np.float64)
    basis = spanning(sample, min(directions, rows.shape[1]), explained).round(BASIS_DIGITS)
    seen = EmbeddingSpace(dim=rows.shape[1], normalised=normalised, basis=tuple(map(tuple, basis.tolist())))
    components = seen.to_model(torch.from_numpy(sample)).numpy()
    return whitened(seen, components, np.maximum(components.std(axis=0), LEAST_STD))
