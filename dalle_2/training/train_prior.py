"""The stage of the prior, on embeddings alone."""

from pathlib import Path

from dalle_2.data.embeddings import EmbeddingPairs
from dalle_2.models.prior import Prior
from dalle_2.training.ground import Ground
from dalle_2.training.recipe import PriorStage


def train_prior(stage: PriorStage, ground: Ground, folder: Path) -> Path:
    """Trains a prior; leaves `prior.safetensors` in `folder`."""
    spaces = {"space": ground.image_space, "text_space": ground.text_space}
    config = stage.config.model_copy(update={"dim": ground.store.dim, **spaces})
    model = ground.built(lambda: Prior.from_config(config))
    return ground.run(model, stage.run, EmbeddingPairs(ground.store), folder)
