"""A pipeline with both priors: trained by one recipe, each called by its name, everywhere."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_inpaint_training import SMALL

import dalle_2
from dalle_2 import DALLe2
from dalle_2.cli.main import main
from dalle_2.errors import UsageError
from dalle_2.inference.image_to_image import image_to_image
from dalle_2.inference.plans import EditSettings
from dalle_2.metadata import read_metadata
from dalle_2.models.autoregressive_prior import AutoregressivePrior
from dalle_2.models.prior import Prior
from dalle_2.presets import resolve
from dalle_2.sampling.options import TokenOptions
from dalle_2.training.train import Training

RED = "a red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = [
        *SMALL, "prior_ar.run.images=128", "prior_ar.run.batch=32", "prior_ar.directions=8", "prior_ar.caption=clip",
        "prior_ar.config.width=16", "prior_ar.config.depth=1", "prior_ar.config.heads=2", "prior_ar.config.buckets=16",
    ]  # fmt: skip
    recipe = resolve(["shapes-micro"], changes=changes)
    made = Training(recipe, tmp_path_factory.mktemp("two") / "out", say=lambda line: None).train()
    assert made is not None
    return made


@pytest.fixture
def pipeline(folder: Path) -> DALLe2:
    return dalle_2.load(folder, device="cpu")


def test_each_prior_is_called_by_its_name(pipeline: DALLe2) -> None:
    assert isinstance(pipeline.prior_of("ar"), AutoregressivePrior)
    assert isinstance(pipeline.prior_of("diffusion"), Prior)
    assert pipeline.prior_of() is pipeline.prior
    ar, diffusion = (pipeline.embed([RED], seeds=1, prior=name, candidates=1) for name in ("ar", "diffusion"))
    assert not torch.allclose(ar, diffusion)
    assert torch.equal(diffusion, pipeline.embed([RED], seeds=1, candidates=1))
    assert float(ar.norm()) == pytest.approx(1, abs=1e-4)


def test_both_draw_pictures_with_candidates_and_seeds(pipeline: DALLe2) -> None:
    one = pipeline.generate([RED, "a blue star"], seeds=[4, 5], prior="ar", candidates=3)
    alone = pipeline.generate(["a blue star"], seeds=[5], prior="ar", candidates=3)
    assert torch.allclose(one[1:], alone, atol=2 / 255)
    plan = pipeline.settings(prior="ar", steps=3)
    prior = pipeline.prior_of("ar")
    assert isinstance(prior, AutoregressivePrior)
    assert plan["prior"].steps == prior.components  # a step a component, whatever the others take
    assert plan["decoder"].steps == 3


def test_its_steps_are_told(pipeline: DALLe2) -> None:
    seen: list[tuple[str, int, int]] = []
    pipeline.generate([RED], prior="ar", on_step=lambda stage, step: seen.append((stage, step.index, step.total)))
    assert [one for one in seen if one[0] == "prior"] == [("prior", k, 8) for k in range(8)]


def test_how_tokens_are_drawn_is_the_callers_choice(pipeline: DALLe2) -> None:
    prior = pipeline.prior_of("ar")
    assert isinstance(prior, AutoregressivePrior)
    greedy = TokenOptions(temperature=0.0)
    z = pipeline.embed([RED], seeds=1, prior="ar", candidates=1, tokens=greedy)
    said = pipeline._captions([RED])
    assert torch.equal(z, prior.sample(said.z_txt, tokens=said.tokens, drawing=greedy, seeds=[1]))
    assert not torch.equal(z, pipeline.embed([RED], seeds=1, prior="ar", candidates=1))
    limited = TokenOptions(top_k=1)  # the likeliest, whatever the temperature
    assert torch.equal(z, pipeline.embed([RED], seeds=1, prior="ar", candidates=1, tokens=limited))
    assert pipeline.settings(prior="ar", tokens=greedy)["prior"].tokens == greedy
    with pytest.raises(UsageError, match="temperature is for an autoregressive prior"):
        pipeline.generate([RED], tokens=greedy)
    with pytest.raises(UsageError, match="top_p must be above 0"):
        pipeline.generate([RED], prior="ar", tokens=TokenOptions(top_p=0.0))


def test_edits_draw_with_the_prior_that_is_named(pipeline: DALLe2) -> None:
    picture = Image.new("RGB", (64, 64), "red")
    by_ar, by_diffusion = (
        next(image_to_image(pipeline, picture, RED, settings=EditSettings(steps=2, prior=name, upsample=False))).image
        for name in ("ar", "diffusion")
    )
    assert by_ar.tobytes() != by_diffusion.tobytes()


def test_what_only_the_other_takes_is_refused(pipeline: DALLe2, micro_pipeline: Path) -> None:
    with pytest.raises(UsageError, match="a negative prompt changes nothing here"):
        pipeline.generate([RED], prior="ar", negative="a star")
    with pytest.raises(UsageError, match="takes 8 steps, one a component, got 3"):
        pipeline.generate([RED], prior="ar", stage_steps={"prior": 3})
    with pytest.raises(UsageError, match="no autoregressive prior"):
        dalle_2.load(micro_pipeline, device="cpu").generate([RED], prior="ar")


def test_an_autoregressive_prior_may_be_the_only_one(pipeline: DALLe2, tmp_path: Path) -> None:
    only = DALLe2(pipeline.prior_of("ar"), pipeline.decoder, pipeline.clip_encoder, device="cpu")
    drawn = only.generate([RED], seeds=2, last_stage="decoder")
    again = dalle_2.load(dalle_2.save(only, tmp_path / "only", dtype=None), device="cpu")
    assert torch.allclose(again.generate([RED], seeds=2, last_stage="decoder"), drawn, atol=1e-5)
    assert isinstance(again.prior, AutoregressivePrior)
    with pytest.raises(UsageError, match="no diffusion prior"):
        again.generate([RED], prior="diffusion")


def test_the_command_line_knows_both(folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", RED, "--prior", "ar", "--pipeline", str(folder), "--device", "cpu"]) == 0
    (path,) = Path("generations").glob("*.png")
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata["sampler"]["prior"] == "autoregressive"
    cold = ["generate", RED, "--prior", "ar", "--temperature", "0.5", "--top-k", "4", "--top-p", "0.9", "--out", "cold"]
    assert main([*cold, "--pipeline", str(folder), "--device", "cpu"]) == 0
    (path,) = Path("cold").glob("*.png")
    metadata = read_metadata(path) or {}
    assert (metadata["temperature"], metadata["top_k"], metadata["top_p"]) == (0.5, 4, 0.9)
    assert main(["generate", RED, "--top-k", "4", "--pipeline", str(folder)]) == 2
    assert "top_k is for an autoregressive prior" in capsys.readouterr().err
    assert main(["generate", RED, "--prior", "ar", "--prior-sampler", "heun", "--pipeline", str(folder)]) == 2
    assert "takes no sampler" in capsys.readouterr().err
    assert main(["generate", RED, "--prior", "arr", "--pipeline", str(folder)]) == 2
    assert "arr" in capsys.readouterr().err
    evaluated = ["evaluate", "--prior", "ar", "--n", "2", "--splits", "a", "--pipeline", str(folder), "--quiet"]
    assert main([*evaluated, "--device", "cpu"]) == 0
