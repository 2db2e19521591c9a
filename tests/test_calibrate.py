"""The table behind Analytic-DPM's variance, estimated after a prior's training and kept in its file."""

from pathlib import Path

import pytest
import torch
from test_inpaint_training import SMALL

import dalle_2
from dalle_2.config import parse
from dalle_2.errors import ConfigError
from dalle_2.models.prior import Prior, PriorConfig
from dalle_2.presets import resolve
from dalle_2.training.train import Training


def test_a_trained_prior_carries_its_table_and_samples_with_it(tmp_path: Path) -> None:
    folder = Training(resolve(["shapes-micro"], changes=SMALL), tmp_path / "out", say=lambda line: None).train()
    assert folder is not None
    pipeline = dalle_2.load(folder, device="cpu")
    prior = pipeline.prior
    assert isinstance(prior, Prior)
    table = prior.eps_mean_square
    assert table is not None
    assert table.shape == (1000,)
    assert bool(table.isfinite().all())
    assert float(table[-1]) == pytest.approx(1, abs=0.1)  # where all is noise, all of it is seen
    words = ["a red circle"]
    drawn = pipeline.embed(words, 5, seeds=1, candidates=1, sampler="ddpm-analytic")
    assert torch.equal(drawn, pipeline.embed(words, 5, seeds=1, candidates=1, sampler="ddpm-analytic"))
    prior.eps_mean_square = 0.5 * table  # another table, another variance
    assert not torch.equal(drawn, pipeline.embed(words, 5, seeds=1, candidates=1, sampler="ddpm-analytic"))


def test_a_table_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="eps_mean_square has 3 numbers for T = 1000"):
        parse(PriorConfig, {"eps_mean_square": [1.0, 1.0, 1.0]})
