"""The stage of the autoregressive prior, on embeddings alone."""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from dalle_2.config import Settings
from dalle_2.data.embeddings import EmbeddingPairs
from dalle_2.models.autoregressive_prior import AutoregressivePrior, AutoregressivePriorConfig
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.training.embed import BASIS_DIGITS, LEAST_STD, MEASURED, whitened
from dalle_2.training.ground import Ground
from dalle_2.training.principal import spanning
from dalle_2.training.recipe import RunSettings


class AutoregressivePriorStage(Settings):
    """The autoregressive prior; `config.dim` and the spaces follow from CLIP and the embeddings.

    directions: how many principal ones of an image embedding are drawn, at most; the paper keeps 319 of 1024.
    explained: no more of them than explain this share of the variance, 0.99 for example.
    """

    directions: int = Field(default=319, ge=1)
    explained: float | None = Field(default=None, gt=0, lt=1)
    config: AutoregressivePriorConfig = AutoregressivePriorConfig()
    run: RunSettings = RunSettings(images=100_000, batch=256)


def train_autoregressive_prior(stage: AutoregressivePriorStage, ground: Ground, folder: Path) -> Path:
    """Trains an autoregressive prior; leaves `autoregressive_prior.safetensors` in `folder`."""
    some = slice(None, None, max(1, len(ground.store) // MEASURED))
    z_img, z_txt = ground.store.batch(some)
    space = drawn_space(
        z_img.numpy(), normalised=ground.normalised, directions=stage.directions, explained=stage.explained
    )
    update = {"dim": ground.store.dim, "space": space, "text_space": ground.text_space}
    config = stage.config.model_copy(update=update)
    model = ground.built(lambda: AutoregressivePrior.from_config(config))
    model.fit_buckets(z_txt.to(ground.device), z_img.to(ground.device))
    return ground.run(model, stage.run, EmbeddingPairs(ground.store), folder)


def drawn_space(
    rows: np.ndarray, *, normalised: bool, directions: int, explained: float | None = None
) -> EmbeddingSpace:
    """The principal directions of image embeddings, the widest first, each brought to mean 0 and deviation 1."""
    sample = rows.astype(np.float64)
    basis = spanning(sample, min(directions, rows.shape[1]), explained).round(BASIS_DIGITS)
    seen = EmbeddingSpace(dim=rows.shape[1], normalised=normalised, basis=tuple(map(tuple, basis.tolist())))
    components = seen.to_model(torch.from_numpy(sample)).numpy()
    return whitened(seen, components, np.maximum(components.std(axis=0), LEAST_STD))
