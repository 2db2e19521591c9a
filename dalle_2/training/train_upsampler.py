"""The stages of the upsamplers, on random crops of large pictures."""

from pathlib import Path

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.embeddings import EmbeddedImages
from dalle_2.models.upsampler import Upsampler
from dalle_2.training.ground import Ground
from dalle_2.training.preview import preview_of
from dalle_2.training.recipe import UpsamplerStage


def train_upsampler(stage: UpsamplerStage, ground: Ground, dataset: AbsDataset, folder: Path) -> Path:
    """Trains an upsampler on `dataset`, whose pictures have its size; leaves its weight file in `folder`.

    One whose U-Net has `z_dim` 0 sees the small picture alone, as in the paper.
    """
    config, space = stage.config, ground.image_space
    if config.unet.z_dim:
        unet = config.unet.model_copy(update={"z_dim": space.width})
        config = config.model_copy(update={"space": space, "unet": unet})
    model = ground.built(lambda: Upsampler.from_config(config))
    images = EmbeddedImages(ground.store, dataset)
    preview = preview_of(images) if stage.run.preview_every else None  # eight pictures, which may be large ones
    return ground.run(model, stage.run, images, folder, preview=preview)
