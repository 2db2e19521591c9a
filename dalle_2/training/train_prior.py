"""The stage of the prior, on embeddings alone."""

from pathlib import Path

import torch

from dalle_2.data.dataset import Batches
from dalle_2.data.embeddings import EmbeddingPairs, EmbeddingStore
from dalle_2.models.prior import Prior
from dalle_2.training.embed import measured_space
from dalle_2.training.progress import Reporter
from dalle_2.training.recipe import PriorStage
from dalle_2.training.stage import run_stage


def train_prior(
    stage: PriorStage,
    store: EmbeddingStore,
    folder: Path,
    *,
    normalised: bool,
    directions: int | None,
    seed: int,
    reporter: Reporter,
    device: str = "cpu",
) -> Path:
    """Trains a prior; leaves `prior.safetensors` in `folder`."""
    config = stage.config.model_copy(
        update={
            "dim": store.dim,
            "space": measured_space(store.z_img, normalised=normalised, directions=directions),
            "text_space": measured_space(store.z_txt, normalised=normalised),
        }
    )
    torch.manual_seed(seed)
    model = Prior.from_config(config).to(device)
    batches = Batches(EmbeddingPairs(store), stage.run.batch, seed=seed, prefetch=3)
    return run_stage(model, "prior", stage.run, batches, folder, seed=seed, reporter=reporter)
