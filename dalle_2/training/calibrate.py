"""After training: how large the noise is that a prior predicts, which Analytic-DPM's variance is made of."""

from pathlib import Path

import torch
from torch import Tensor

from dalle_2.data.embeddings import EmbeddingPairs
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.prior import Prior
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.mean_squares import eps_mean_square

ROWS, BATCH = 512, 128
DIGITS = 6


def calibrate(path: Path, pairs: EmbeddingPairs, *, seed: int, device: str = "cpu") -> Path:
    """Writes the table into a trained prior's weight file, estimated on some of its pairs; returns the file."""
    prior = load_model(path, Prior.kind)
    assert isinstance(prior, Prior)
    prior.to(device)
    rows = range(0, len(pairs), max(1, len(pairs) // ROWS))[:ROWS]
    with torch.no_grad():
        batches = [_bound(prior, pairs, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        table = eps_mean_square(batches, prior.noise_scheduler, torch.Generator().manual_seed(seed))
    known = tuple(round(value, DIGITS) for value in table.tolist())
    prior.config = prior.config.model_copy(update={"eps_mean_square": known})
    save_model(prior, path)
    return path


def _bound(prior: Prior, pairs: EmbeddingPairs, rows: range) -> tuple[Denoiser, Tensor]:
    """A denoiser of some captions, unguided, and the clean embeddings that belong to them."""
    batch = {name: value.to(prior.device) for name, value in pairs.batch(list(rows)).items()}
    denoiser = prior.denoiser(batch["z_txt"], tokens=batch.get("tokens"), guidance=1.0)
    return denoiser, prior.space.to_model(batch["z_img"])
