"""The stage of the draft, on pictures and their embeddings."""

from pathlib import Path

import torch

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import Batches
from dalle_2.data.embeddings import EmbeddedImages, EmbeddingStore
from dalle_2.models.draft import Draft
from dalle_2.training.embed import measured_space
from dalle_2.training.progress import Reporter
from dalle_2.training.recipe import DraftStage
from dalle_2.training.stage import run_stage


def train_draft(
    stage: DraftStage,
    store: EmbeddingStore,
    dataset: AbsDataset,
    folder: Path,
    *,
    normalised: bool,
    directions: int | None,
    seed: int,
    reporter: Reporter,
    device: str = "cpu",
) -> Path:
    """Trains a draft on `dataset`, whose pictures have its size; leaves `draft.safetensors` in `folder`."""
    space = measured_space(store.z_img, normalised=normalised, directions=directions)
    torch.manual_seed(seed)
    model = Draft.from_config(stage.config.model_copy(update={"space": space, "z_dim": space.width})).to(device)
    batches = Batches(EmbeddedImages(store, dataset), stage.run.batch, seed=seed, prefetch=3)
    return run_stage(model, "draft", stage.run, batches, folder, seed=seed, reporter=reporter)
