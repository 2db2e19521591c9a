"""The stage of the upsampler, on random crops of large pictures."""

from pathlib import Path

import torch

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.dataset import Batches
from dalle_2.data.embeddings import EmbeddedImages, EmbeddingStore
from dalle_2.models.upsampler import Upsampler
from dalle_2.training.embed import measured_space
from dalle_2.training.preview import preview_of
from dalle_2.training.progress import Reporter
from dalle_2.training.recipe import UpsamplerStage
from dalle_2.training.stage import run_stage


def train_upsampler(
    stage: UpsamplerStage,
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
    """Trains an upsampler on `dataset`, whose pictures have its size; leaves `upsampler.safetensors` in `folder`."""
    space = measured_space(store.z_img, normalised=normalised, directions=directions)
    unet = stage.config.unet.model_copy(update={"z_dim": space.width})
    config = stage.config.model_copy(update={"space": space, "unet": unet})
    torch.manual_seed(seed)
    model = Upsampler.from_config(config).to(device)
    images = EmbeddedImages(store, dataset)
    batches = Batches(images, stage.run.batch, seed=seed, prefetch=3)
    return run_stage(
        model, "upsampler", stage.run, batches, folder, seed=seed, reporter=reporter, preview=preview_of(images)
    )
