"""Priors and decoders learn to sample, by the calls of the user's contract alone: a few pairs, drawn again in 25 steps.

Twice each: by `train_step`, on batches noised by hand, and by a loop of the caller's own over `forward`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_2 import DALLe2Trainer, DDIMSampler, Decoder, DecoderUNetConfig, NoiseScheduler, Prior

TARGETS = ["eps", "x_0", "v"]
PAIRS, PICTURES, SIZE, DIM = 24, 8, 8, 512
Batch = dict[str, Tensor]


def embeddings(rows: int, seed: int) -> Tensor:
    """Of length 1, as CLIP's."""
    return F.normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pictures() -> Tensor:
    """Smooth patches of colour in [-1, 1], no two alike."""
    coarse = torch.rand(PICTURES, 3, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return F.interpolate(coarse, SIZE, mode="bilinear")


def noised_by_hand(scheduler: NoiseScheduler, x_0: Tensor, generator: torch.Generator) -> Batch:
    """x_t, and what a network may be asked for, by the formulas of the papers."""
    t = torch.randint(1000, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    alpha_bar = scheduler.get_alpha_bar_t(t).float().reshape(-1, *[1] * (x_0.ndim - 1))
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    return {"t": t, "x_t": x_t, "eps": eps, "x_0": x_0, "v": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0}


def by_the_trainer(model: Any, kind: str, folder: Path, lr: float) -> Callable[[Tensor, Batch], float]:
    """`train_step`, which learns the user's batches: a prior's with eps, a decoder's with x_0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    scheduler = NoiseScheduler(1000)
    trainer = DALLe2Trainer(model, kind, optimizer, scheduler, DDIMSampler(scheduler), None, False, str(folder), 10)

    def step(z: Tensor, batch: Batch) -> float:
        if kind == "prior":
            return trainer.train_step({"z_t": batch["x_t"], "z_txt": z, "t": batch["t"], "eps": batch["eps"]})
        return trainer.train_step({"x_t": batch["x_t"], "z_img": z, "t": batch["t"], "x_0": batch["x_0"]})

    return step


def by_hand(model: Any, kind: str, folder: Path, lr: float) -> Callable[[Tensor, Batch], float]:
    """The mean squared error of what `forward` says."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)

    def step(z: Tensor, batch: Batch) -> float:
        t_emb = model.time(batch["t"])
        said = model(z, batch["x_t"], t_emb) if kind == "prior" else model(batch["x_t"], z, t_emb)
        loss = F.mse_loss(said, batch[model.target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


WAYS = [by_the_trainer, by_hand]


def own_nearest(drawn: Tensor, given: Tensor) -> float:
    """The share of rows that lie closer to their own than to any other."""
    return float((torch.cdist(drawn.flatten(1), given.flatten(1)).argmin(1) == torch.arange(len(given))).float().mean())


def learned_prior(prior: Prior, way: Callable[..., Any], folder: Path, steps: int, lr: float = 1e-3) -> Tensor:
    """A prior's draws, in the space it draws in, for the pairs it was trained on."""
    torch.manual_seed(0)
    z_txt, x_0 = embeddings(PAIRS, 1), embeddings(PAIRS, 2) * math.sqrt(DIM)
    step, generator = way(prior, "prior", folder, lr), torch.Generator().manual_seed(3)
    for _ in range(steps):
        step(z_txt, noised_by_hand(prior.noise_scheduler, x_0, generator))
    prior.eval()
    sampler = DDIMSampler(NoiseScheduler(1000))
    drawn = sampler.sample(prior, z_txt, (PAIRS, DIM), 25, seeds=list(range(PAIRS)))
    assert own_nearest(prior.sample(z_txt, 25, seeds=list(range(PAIRS))), embeddings(PAIRS, 2)) >= 0.95
    return drawn


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("way", WAYS)
def test_a_prior_learns_its_pairs(way: Callable[..., Any], target: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    prior = Prior(1000, target=target, width=128, depth=2)
    drawn, x_0 = learned_prior(prior, way, tmp_path, 150), embeddings(PAIRS, 2) * math.sqrt(DIM)
    assert own_nearest(drawn, x_0) >= 0.95
    assert 0.7 < float(drawn.std()) < 1.3
    assert float(F.cosine_similarity(drawn, x_0).mean()) > 0.9


@pytest.mark.slow
def test_the_prior_of_the_contract_learns_its_pairs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    drawn = learned_prior(Prior(T=1000), by_the_trainer, tmp_path, 120, lr=3e-4)
    assert own_nearest(drawn, embeddings(PAIRS, 2) * math.sqrt(DIM)) >= 0.95
    assert 0.7 < float(drawn.std()) < 1.3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("way", WAYS)
def test_a_decoder_learns_its_pictures(way: Callable[..., Any], target: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = DecoderUNetConfig(channels=32, multiples=(1,), attention=(0,), patch=2, t_dim=64)
    decoder = Decoder(1000, target=target, image_size=SIZE, unet=unet)
    z_img, x_0 = embeddings(PICTURES, 1), pictures()
    step, generator = way(decoder, "decoder", tmp_path, 3e-3), torch.Generator().manual_seed(3)
    for _ in range(120):
        step(z_img.repeat(2, 1), noised_by_hand(decoder.noise_scheduler, x_0.repeat(2, 1, 1, 1), generator))
    drawn = decoder.eval().sample(z_img, 25, seeds=list(range(PICTURES)))
    assert own_nearest(drawn, x_0) >= 0.95
    assert float((drawn - x_0).square().mean().sqrt()) < 0.25  # of pictures with a deviation of 0.4
