"""The two sides of every training comparison: this package's models and those of dalle2-pytorch 1.15.6.

decoder       32 px, embeddings of 512 numbers, equal parameters (23.8 million) and FLOPs within 20 %: the fastest found
              of our U-Net's settings that fulfil this (match_unet.py). It folds 2 x 2 pixels into channels, computes in
              wide convolutions, and has 0.85 of their FLOPs
decoder-same  the same, our U-Net with the widths and depths of theirs
prior         embeddings only, each side with its own defaults; theirs pads the absent text to 256 tokens
prior-equal   the same, theirs with max_text_len = 0, so that both read four tokens: text embedding, time, noised image
              embedding, query
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from dalle_2.models.embedding_space import EmbeddingSpace

DIM = 512
IMAGE_SIZE = 32
DROP = 0.1  # share of rows without condition, on both sides

Stage = Literal["decoder", "decoder-same", "prior", "prior-equal"]
BATCH: dict[Stage, int] = {"decoder": 16, "decoder-same": 16, "prior": 64, "prior-equal": 64}
STAGES: tuple[Stage, ...] = tuple(BATCH)


@dataclass(frozen=True)
class Batch:
    """Clean pairs: embeddings of unit length, pictures in [-1, 1]."""

    z_txt: Tensor
    z_img: Tensor
    image: Tensor

    def __len__(self) -> int:
        return len(self.z_img)


@dataclass(frozen=True, eq=False)
class Side:
    """A model and its loss for a clean batch: noising, the network's forward pass, mean squared error."""

    model: nn.Module
    loss: Callable[[Batch], Tensor]


def random_batch(size: int, *, image_size: int = IMAGE_SIZE, seed: int = 0) -> Batch:
    """Speed doesn't depend on what the pictures show."""
    generator = torch.Generator().manual_seed(seed)
    z_txt, z_img = (normalize(torch.randn(size, DIM, generator=generator), dim=1) for _ in range(2))
    return Batch(z_txt, z_img, torch.rand(size, 3, image_size, image_size, generator=generator) * 2 - 1)


def build(side: Literal["ours", "theirs"], stage: Stage) -> Side:
    """The untrained model of one side."""
    torch.manual_seed(0)
    if side == "ours":
        return our_prior() if "prior" in stage else our_decoder(same=stage == "decoder-same")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return their_prior(text_tokens=256 if stage == "prior" else 0) if "prior" in stage else their_decoder()


# Ours


def our_decoder(
    image_size: int = IMAGE_SIZE, *, dim: int = DIM, space: "EmbeddingSpace | None" = None, same: bool = False
) -> Side:
    """A U-Net that matches theirs, with their widths if `same`. `space` says how the embeddings are scaled."""
    from dalle_2.models.decoder import Decoder, DecoderConfig
    from dalle_2.models.decoder_unet import DecoderUNetConfig

    wide = {"channels": 128, "multiples": (1, 2), "attention": (1,), "patch": 2, "t_dim": 832, "head_channels": 64}
    theirs = {"channels": 64, "multiples": (1, 2, 3, 4), "attention": (3,), "t_dim": 256, "head_channels": 64}
    unet = DecoderUNetConfig(blocks=2, z_dim=dim, **(theirs if same else wide))  # type: ignore[arg-type]
    config = DecoderConfig(image_size=image_size, unet=unet, space=space, drop=DROP, sigma_data=None)
    return our_side(Decoder(config=config))


def our_prior(
    dim: int = DIM, *, space: "EmbeddingSpace | None" = None, text_space: "EmbeddingSpace | None" = None
) -> Side:
    """Our prior with its defaults, 6 layers of 8 heads; as wide as the embeddings, as theirs must be.

    It predicts the clean embedding, as theirs, the paper's and those of our presets do: a prediction of noise learns
    last what a caption says, since there it counts where noise is nearly all there is.
    """
    from dalle_2.models.prior import Prior, PriorConfig

    config = PriorConfig(
        dim=dim, width=dim, target="x_0", space=space, text_space=text_space, drop=DROP, sigma_data=None
    )
    return our_side(Prior(config=config))


def our_side(model: nn.Module) -> Side:
    """Any process of ours behind the one interface."""
    generator = torch.Generator().manual_seed(0)

    def loss(batch: Batch) -> Tensor:
        clean = {"z_txt": batch.z_txt, "z_img": batch.z_img, "image": batch.image}
        return model.loss(model.noised(clean, generator))["loss"]  # type: ignore[operator]

    return Side(model, loss)


# Theirs


def their_decoder(image_size: int = IMAGE_SIZE, *, dim: int = DIM, sample_steps: int | None = None) -> Side:
    """Their U-Net with its defaults but for the widths. No learned variance, which ours has not either."""
    from dalle2_pytorch import Decoder, Unet

    unet = Unet(dim=64, image_embed_dim=dim, cond_dim=112, channels=3, dim_mults=(1, 2, 3, 4))
    model = Decoder(
        unet=unet, image_size=image_size, timesteps=1000, sample_timesteps=sample_steps,
        image_cond_drop_prob=DROP, learned_variance=False,
    )  # fmt: skip
    # They take pictures in [0, 1].
    return Side(model, lambda batch: model((batch.image + 1) / 2, image_embed=batch.z_img))


def their_prior(dim: int = DIM, *, text_tokens: int) -> Side:
    """Their prior, as deep and with as many heads as ours, other settings at their defaults."""
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

    network = DiffusionPriorNetwork(dim=dim, depth=6, dim_head=64, heads=8, max_text_len=text_tokens)
    model = DiffusionPrior(
        net=network,
        image_embed_dim=dim,
        timesteps=1000,
        cond_drop_prob=DROP,
        condition_on_text_encodings=False,
    )
    # Cloned, because they scale the embeddings in place.
    return Side(model, lambda batch: model(text_embed=batch.z_txt, image_embed=batch.z_img.clone()))
