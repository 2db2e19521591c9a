"""The stage of the prior, on embeddings and, where it reads them, captions."""

from pathlib import Path

from dalle_2.data.embeddings import EmbeddingPairs
from dalle_2.models.prior import Prior
from dalle_2.training.calibrate import calibrate
from dalle_2.training.ground import Ground
from dalle_2.training.reading import reader_config, with_reader
from dalle_2.training.recipe import PriorStage


def train_prior(stage: PriorStage, ground: Ground, folder: Path) -> Path:
    """Trains a prior; leaves `prior.safetensors` in `folder`."""
    spaces = {"space": ground.image_space, "text_space": ground.text_space}
    text = reader_config(stage.caption, stage.text, ground)
    config = stage.config.model_copy(update={"dim": ground.store.dim, "caption": text, **spaces})
    model = ground.built(lambda: with_reader(Prior.from_config(config), stage.caption, ground))
    pairs = EmbeddingPairs(ground.store, ground.tokens if text else None)
    return calibrate(ground.run(model, stage.run, pairs, folder), pairs, seed=ground.seed, device=ground.device)
