"""An open DALL·E 2 (unCLIP): train it, sample from it, edit with it, serve it.

Every public name can be imported from here and from its own file. Importing the package loads neither
torch nor numpy; a name's file is loaded when the name is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle_2.data.abs_dataset import AbsDataset as AbsDataset
    from dalle_2.data.image_folder import ImageFolder as ImageFolder
    from dalle_2.data.shapes import Shapes as Shapes
    from dalle_2.inference.generate import generate as generate
    from dalle_2.models.checkpoints import load_model as load_model
    from dalle_2.models.checkpoints import save_model as save_model
    from dalle_2.models.clip import CLIP as CLIP
    from dalle_2.models.clip import CLIPConfig as CLIPConfig
    from dalle_2.models.clip import VisionConfig as VisionConfig
    from dalle_2.models.clip_encoding import CLIPEncoder as CLIPEncoder
    from dalle_2.models.dalle2 import DALLe2 as DALLe2
    from dalle_2.models.decoder import Decoder as Decoder
    from dalle_2.models.decoder import DecoderConfig as DecoderConfig
    from dalle_2.models.decoder_unet import DecoderUNet as DecoderUNet
    from dalle_2.models.decoder_unet import DecoderUNetConfig as DecoderUNetConfig
    from dalle_2.models.embedding_space import EmbeddingSpace as EmbeddingSpace
    from dalle_2.models.layers.text_transformer import TextConfig as TextConfig
    from dalle_2.models.prior import Prior as Prior
    from dalle_2.models.prior import PriorConfig as PriorConfig
    from dalle_2.models.prior_transformer import PriorTransformer as PriorTransformer
    from dalle_2.models.timestep_embedding import TimestepEmbedder as TimestepEmbedder
    from dalle_2.models.upsampler import Upsampler as Upsampler
    from dalle_2.models.upsampler import UpsamplerConfig as UpsamplerConfig
    from dalle_2.pipelines.folder import load as load
    from dalle_2.pipelines.folder import save as save
    from dalle_2.sampling.ddim_sampler import DDIMSampler as DDIMSampler
    from dalle_2.sampling.noise_scheduler import NoiseScheduler as NoiseScheduler
    from dalle_2.text.tokenizer import Tokenizer as Tokenizer
    from dalle_2.training.lr_schedule import LRSchedule as LRSchedule
    from dalle_2.training.trainer import DALLe2Trainer as DALLe2Trainer
    from dalle_2.training.trainer import TrainerSettings as TrainerSettings

__version__ = "0.1.0"

_HOME = {
    "AbsDataset": "data.abs_dataset",
    "CLIP": "models.clip",
    "CLIPConfig": "models.clip",
    "CLIPEncoder": "models.clip_encoding",
    "DALLe2": "models.dalle2",
    "DALLe2Trainer": "training.trainer",
    "DDIMSampler": "sampling.ddim_sampler",
    "Decoder": "models.decoder",
    "DecoderConfig": "models.decoder",
    "DecoderUNet": "models.decoder_unet",
    "DecoderUNetConfig": "models.decoder_unet",
    "EmbeddingSpace": "models.embedding_space",
    "ImageFolder": "data.image_folder",
    "LRSchedule": "training.lr_schedule",
    "NoiseScheduler": "sampling.noise_scheduler",
    "Prior": "models.prior",
    "PriorConfig": "models.prior",
    "PriorTransformer": "models.prior_transformer",
    "Shapes": "data.shapes",
    "TextConfig": "models.layers.text_transformer",
    "TimestepEmbedder": "models.timestep_embedding",
    "Tokenizer": "text.tokenizer",
    "TrainerSettings": "training.trainer",
    "Upsampler": "models.upsampler",
    "UpsamplerConfig": "models.upsampler",
    "VisionConfig": "models.clip",
    "generate": "inference.generate",
    "load": "pipelines.folder",
    "load_model": "models.checkpoints",
    "save": "pipelines.folder",
    "save_model": "models.checkpoints",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next look-up doesn't come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
