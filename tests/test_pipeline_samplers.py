"""Samplers by name, through a whole pipeline: a stage's own steps, seeds, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact_denoisers import COSINE
from PIL import Image

import dalle_2
from dalle_2 import DALLe2, NoiseScheduler, generate
from dalle_2.cli.main import main
from dalle_2.errors import UsageError
from dalle_2.inference.generation import GenerationSettings
from dalle_2.metadata import read_metadata
from dalle_2.sampling.ddpm_sampler import DDPMSampler
from dalle_2.sampling.heun_sampler import HeunSampler
from dalle_2.sampling.sampler_names import NAMES
from dalle_2.sampling.samplers import sampler
from dalle_2.sampling.unipc_sampler import UniPCSampler

EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def pipeline(micro_pipeline: Path) -> DALLe2:
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    for stage in loaded.stages().values():
        stage.eps_mean_square = torch.linspace(0.1, 1, 1000)
    return loaded


PROMPTS = ["a red circle", "a blue square", "a red square"]


@EVERY
def test_every_sampler_serves_every_stage_with_steps_of_its_own(pipeline: DALLe2, name: str) -> None:
    seen: list[str] = []
    own = {"prior": 4, "decoder": 3, "upsampler-32": 2}
    options = {"sampler": name, "stage_steps": own}
    x = pipeline.generate(PROMPTS, seeds=5, on_step=lambda stage, step: seen.append(stage), **options)
    assert {stage: seen.count(stage) for stage in own} == own
    assert torch.equal(x, pipeline.generate(PROMPTS, seeds=[5, 6, 7], **options))
    alone = pipeline.generate(PROMPTS[2:], seeds=7, **options)
    assert ((x[2] - alone[0]).abs() * 127.5 <= 1).float().mean() >= 0.999
    assert -1 <= x.min() < x.max() <= 1
    if name != "ddim":
        assert not torch.equal(x, pipeline.generate(PROMPTS, seeds=5, stage_steps=own))


def test_each_stage_may_have_its_own_sampler(pipeline: DALLe2) -> None:
    wish = {"prior": "unipc", "upsampler": "heun"}
    plan = pipeline.settings(4, sampler=wish)
    assert [run.sampler for run in plan.values()] == ["unipc", "ddim", "heun"]
    z = pipeline.embed(PROMPTS, 4, seeds=5, sampler=wish)
    x = pipeline.decode(z, 4, seeds=5, sampler=wish)
    large = pipeline.upscale(x, z, 4, seeds=5, sampler=wish)
    assert torch.equal(large, pipeline.generate(PROMPTS, 4, seeds=5, sampler=wish))
    assert not torch.equal(z, pipeline.embed(PROMPTS, 4, seeds=5, sampler="ddim"))


def test_given_samplers_hold_until_another_is_named(pipeline: DALLe2) -> None:
    z = pipeline.embed(PROMPTS, seeds=5)
    pipeline.decoder_sampler = UniPCSampler(COSINE, order=1)
    assert pipeline.settings()["decoder"].sampler == "unipc"
    own = pipeline.decode(z, 5, seeds=5)
    pipeline.decoder_sampler = None
    assert not torch.equal(own, pipeline.decode(z, 5, seeds=5, sampler="unipc"))  # which is of order 2
    pipeline.decoder_sampler = HeunSampler(NoiseScheduler(500))
    assert pipeline.decode(z, 5, seeds=5, sampler="unipc").isfinite().all()
    with pytest.raises(UsageError, match=r"noise table \(cosine, T = 500\).*HeunSampler\(model"):
        pipeline.decode(z, 5, seeds=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"sampler": "unipcc"}, "no sampler 'unipcc': did you mean 'unipc'"),
        ({"sampler": {"decoder": "huen"}}, "no sampler 'huen': did you mean 'heun'"),
        ({"sampler": {"painter": "heun"}}, "no stage 'painter': its stages are prior, decoder, upsampler-32"),
        ({"sampler": "heun", "eta": 0.5}, "the sampler heun takes no eta, got 0.5: .* use ddim"),
        ({"sampler": "unipc", "steps": 1001}, "steps must be a whole number from 1 to 1000 for the prior, got 1001"),
    ],
)
def test_what_no_sampler_does_is_refused_in_one_sentence(pipeline: DALLe2, call: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        pipeline.generate(**({"prompts": PROMPTS} | call))
    assert "\n" not in str(caught.value)


def test_a_model_without_mean_squares_has_no_analytic_variance(micro_pipeline: Path) -> None:
    bare = dalle_2.load(micro_pipeline, device="cpu")
    for stage, named in (("prior", "prior"), ("decoder", "decoder"), ("upsampler-32", "upsampler")):
        words = f"^the {named} has no table for the sampler ddpm-analytic .*: choose ddpm for this stage"
        with pytest.raises(UsageError, match=words):
            bare.generate(PROMPTS, sampler={stage: "ddpm-analytic"})
    z_img = torch.zeros(2, 16)
    bare.decoder.eps_mean_square = torch.full((1000,), 0.5)
    other = DDPMSampler(COSINE, variance="analytic", eps_mean_square=torch.full((1000,), 0.9))
    own, given = (
        bare.decoder.sample(z_img, 4, seeds=[1, 2], sampler=s) for s in (sampler("ddpm-analytic", COSINE), other)
    )
    assert not torch.equal(own, given)


# On the command line


@pytest.fixture
def run(micro_pipeline: Path, workdir: Path) -> Callable[..., int]:
    """The command line with the micro pipeline, standing in an empty folder."""

    def call(*arguments: str) -> int:
        return main([arguments[0], "--pipeline", str(micro_pipeline), "--device", "cpu", *arguments[1:]])

    return call


def test_the_command_names_samplers_and_the_picture_keeps_them(run: Callable[..., int], micro_pipeline: Path) -> None:
    options = "--seed 5 --quiet --sampler unipc --decoder-sampler heun --decoder-steps 2"
    assert run("generate", "a red circle", *options.split()) == 0
    (path,) = Path("generations").iterdir()
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata["sampler"] == {"prior": "unipc", "decoder": "heun", "upsampler-32": "unipc"}
    assert metadata["steps"]["decoder"] == 2
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    settings = GenerationSettings(samplers=metadata["sampler"], stage_steps={"decoder": 2})
    (image,) = generate(["a red circle"], loaded, seed=5, settings=settings)
    assert Image.open(path).convert("RGB").tobytes() == image.tobytes()


def test_upscale_takes_a_sampler_too(run: Callable[..., int]) -> None:
    Image.new("RGB", (16, 16), (200, 30, 30)).save("a.png")
    options = ["--seed", "3", "--steps", "4", "--quiet"]
    for name in ("heun", "ddim"):
        assert run("upscale", "a.png", *options, "--sampler", name, "--out", name) == 0
    drawn = [Path(name, "a-32px.png") for name in ("heun", "ddim")]
    assert [read_metadata(path)["sampler"] for path in drawn] == [{"upsampler-32": "heun"}, {"upsampler-32": "ddim"}]
    assert Image.open(drawn[0]).tobytes() != Image.open(drawn[1]).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "a", "--sampler", "huen"], "no sampler 'huen': did you mean 'heun'?"),
        (["generate", "a", "--prior-sampler", "dpm"], "no sampler 'dpm': did you mean 'ddpm'?"),
        (["generate", "a", "--decoder-sampler", "euler"], "no sampler 'euler': there are ddim, ddpm"),
        (["generate", "a", "--sampler", "heun", "--eta", "0.5"], "the sampler heun takes no eta, got 0.5"),
        (["generate", "a", "--sampler", "ddpm-analytic"], "the prior has no table for the sampler ddpm-analytic"),
        (["generate", "a", "--sampler", "unipc", "--steps", "1001"], "from 1 to 1000 for the prior, got 1001"),
        (["upscale", "a.png", "--sampler", "huen"], "did you mean 'heun'?"),
    ],
)
def test_wrong_samplers_are_one_sentence(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_misspelt_sampler_is_found_without_loading_torch(workdir: Path) -> None:
    code = (
        "import sys; from dalle_2.cli.main import main; "
        "assert main(['generate', 'a red circle', '--sampler', 'huen']) == 2; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
