"""The stage of the draft, on pictures and their embeddings."""

from pathlib import Path

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.embeddings import EmbeddedImages
from dalle_2.models.draft import Draft
from dalle_2.training.ground import Ground
from dalle_2.training.recipe import DraftStage


def train_draft(stage: DraftStage, ground: Ground, dataset: AbsDataset, folder: Path) -> Path:
    """Trains a draft on `dataset`, whose pictures have its size; leaves `draft.safetensors` in `folder`."""
    space = ground.space_of(stage.of)
    config = stage.config.model_copy(update={"space": space, "z_dim": space.width})
    model = ground.built(lambda: Draft.from_config(config))
    return ground.run(model, stage.run, EmbeddedImages(ground.store, dataset, of=stage.of), folder)
