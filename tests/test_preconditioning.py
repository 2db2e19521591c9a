"""What a network's answer is added to: exact at the start, the same by every road, and known from t_emb alone."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_rig import DIM, T, awake, decoder, generator, noise, prior, upsampler

from dalle_2 import TimestepEmbedder
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.diffusion import Diffusion
from dalle_2.models.preconditioning import level_of
from dalle_2.models.upsampler import enlarge
from dalle_2.paths import shipped_pipelines
from dalle_2.weights.checkpoint import load_checkpoint, save_checkpoint

TARGETS = ["eps", "x_0", "v"]
BUILD = {"prior": prior, "decoder": decoder, "upsampler": upsampler}
ROWS = 4


def noised(model: Diffusion) -> dict[str, Tensor]:
    size = 16 if model.kind == "upsampler" else 8
    clean = {"z_txt": noise(ROWS, DIM, seed=1), "z_img": noise(ROWS, DIM, seed=2), "image": noise(ROWS, 3, size, size)}
    return model.noised(clean, generator())  # type: ignore[operator]


def predicted(model: Any, batch: dict[str, Tensor], t_emb: Any) -> Tensor:
    """`forward`, whichever the stage."""
    if model.kind == "prior":
        return model(batch["z_txt"], batch["z_t"], t_emb)
    if model.kind == "decoder":
        return model(batch["x_t"], batch["z_img"], t_emb)
    return model(batch["x_t"], batch["low_res"], batch["z_img"], t_emb)


def x_t_of(batch: dict[str, Tensor]) -> Tensor:
    return batch["z_t"] if "z_t" in batch else batch["x_t"]


def level(model: Diffusion, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    a = model.noise_scheduler.alpha_bar[t].reshape(-1, *[1] * (like.ndim - 1))
    return a.sqrt().float(), (1 - a).sqrt().float()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", BUILD)
def test_an_untrained_network_gives_the_best_linear_guess(kind: str, target: str) -> None:
    """The guess that the regression of the target on x_t gives, for data of that mean and deviation."""
    model = BUILD[kind](target=target)
    batch = noised(model)
    x_t, sigma = x_t_of(batch), model.settings.sigma_data
    a, s = level(model, batch["t"], x_t)
    mean = enlarge(batch["low_res"], x_t.shape[-2:]) if kind == "upsampler" else torch.zeros_like(x_t)
    x_0 = mean + a * sigma**2 / (a**2 * sigma**2 + s**2) * (x_t - a * mean)
    eps = (x_t - a * x_0) / s
    wanted = {"x_0": x_0, "eps": eps, "v": a * eps - s * x_0}[target]
    torch.testing.assert_close(predicted(model, batch, model.time(batch["t"])), wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", BUILD)
def test_forward_loss_and_denoiser_agree(kind: str, target: str) -> None:
    model = awake(BUILD[kind](target=target, clip=None)).eval()
    batch = {name: value for name, value in noised(model).items() if name != "dropped"}
    with torch.no_grad():
        said = predicted(model, batch, model.time(batch["t"]))
    wanted = model.wanted(x_t_of(batch), batch["t"], batch)
    assert float(model.loss(batch)["loss"].detach()) == pytest.approx(float((said - wanted).square().mean()), rel=1e-5)
    condition = batch["z_txt" if kind == "prior" else "z_img"]
    beside = {"low_res": batch["low_res"]} if kind == "upsampler" else {}
    guess = model.denoiser(condition, guidance=1.0, **beside)(x_t_of(batch), batch["t"]).x_0
    a, s = level(model, batch["t"], guess)
    x_0 = {"x_0": said, "eps": (x_t_of(batch) - s * said) / a, "v": a * x_t_of(batch) - s * said}[target]
    torch.testing.assert_close(guess, x_0, atol=1e-3, rtol=1e-3)


def test_a_learned_variance_stays_as_the_network_says_it() -> None:
    model = awake(decoder({"out_channels": 6}, learned_variance=True)).eval()
    plain = copy.deepcopy(model)
    plain.precondition = None
    batch = noised(model)
    t_emb = model.time(batch["t"])
    whole, raw = (predicted(one, batch, t_emb) for one in (model, plain))
    assert whole.shape == raw.shape == (ROWS, 6, 8, 8)
    assert torch.equal(whole[:, 3:], raw[:, 3:])
    assert not torch.allclose(whole[:, :3], raw[:, :3])
    assert model.loss(batch)["loss"].isfinite()


# What t_emb says


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_t_emb_says_how_noisy_x_t_is_in_any_dtype(dtype: torch.dtype) -> None:
    model = prior(T=1000)
    t = torch.tensor([0, 1, 30, 500, 900, 980])
    angle = level_of(model.time(t).to(dtype))
    alpha_bar = model.noise_scheduler.alpha_bar[t]
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(angle.cos(), alpha_bar.sqrt().float(), rtol=tolerance, atol=0)
    torch.testing.assert_close(angle.sin(), (1 - alpha_bar).sqrt().float(), rtol=tolerance, atol=0)


def test_t_emb_may_be_cut_and_repeated() -> None:
    model = awake(prior()).eval()
    batch = noised(model)
    t_emb = model.time(torch.full((1,), 7))
    wanted = predicted(model, batch, model.time(torch.full((ROWS,), 7)))
    for given in (t_emb, t_emb.detach().repeat(ROWS, 1), t_emb.expand(ROWS, -1).clone().mul_(1), t_emb[[0] * ROWS]):
        torch.testing.assert_close(predicted(model, batch, given), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        half = predicted(model, batch, t_emb)
    assert half.dtype == torch.float32  # at the noisy end a rounded eps would be multiplied by hundreds
    torch.testing.assert_close(half, wanted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("sigma_data", [None, 0.7])
def test_timesteps_may_stand_in_place_of_their_embedding(kind: str, sigma_data: float | None) -> None:
    model = awake(BUILD[kind](sigma_data=sigma_data)).eval()
    batch = noised(model)
    t = batch["t"]
    wanted = predicted(model, batch, model.time(t))
    for given in (t, t.int(), t[:, None], t.float()):
        assert torch.equal(predicted(model, batch, given), wanted)
    for given in (7, torch.tensor(7), torch.tensor([7])):
        assert torch.equal(predicted(model, batch, given), predicted(model, batch, torch.full((ROWS,), 7)))


def test_what_is_neither_is_refused_in_one_sentence() -> None:
    model = prior()
    batch = noised(model)
    for given in (torch.randn(ROWS, 15), torch.zeros(ROWS + 1), torch.zeros(ROWS, 2, 16)):
        with pytest.raises(UsageError, match=rf"t_emb must be \({ROWS}, 16\).*or timesteps t of shape \({ROWS},\)"):
            predicted(model, batch, given)
    with pytest.raises(UsageError, match=f"t must lie in 0 ... {T - 1}.*got {T}"):
        predicted(model, batch, torch.full((ROWS,), T))
    for stranger in (TimestepEmbedder(16)(batch["t"]), torch.randn(ROWS, 16), torch.full((ROWS, 16), torch.nan)):
        with pytest.raises(UsageError, match=r"make it with the model's own time\(t\), or give the timesteps"):
            predicted(model, batch, stranger)
    predicted(prior(sigma_data=None), batch, torch.randn(ROWS, 16))  # there any embedding does
    with pytest.raises(UsageError, match="needs 3 numbers or more"):
        TimestepEmbedder(2, noise_scheduler=model.noise_scheduler)


def test_noise_levels_leave_the_timestep_readable() -> None:
    model = awake(upsampler(noise_levels=10)).eval()
    t = torch.tensor([3, 20, 40, 45])
    assert torch.equal(level_of(model.embed(t, torch.tensor([1, 2, 3, 4]))), level_of(model.time(t)))


COMPILED = """
import torch
from dalle_2 import Prior
from dalle_2.models.prior import PriorConfig

torch.set_grad_enabled(False)
model = Prior(config=PriorConfig(dim=8, width=16, depth=1, heads=2))
answer, x_t, t_emb = torch.randn(3, 8), torch.randn(3, 8), model.time(torch.tensor([3, 500, 900]))
compiled = torch.compile(model.precondition, backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(answer, x_t, t_emb), model.precondition(answer, x_t, t_emb))
"""


def test_a_compiler_sees_it_as_one_graph() -> None:
    """No look into a table, no branch on a value; in a process where nothing checks types at each call."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# Files


def test_it_is_stored_with_the_model(tmp_path: Path) -> None:
    model = awake(prior()).eval()
    save_model(model, tmp_path / "prior.safetensors")
    loaded = load_model(tmp_path / "prior.safetensors")
    assert loaded.config == model.config
    z_txt = noise(2, DIM)
    assert torch.equal(loaded.sample(z_txt, 3, seeds=[1, 2]), model.sample(z_txt, 3, seeds=[1, 2]))


@pytest.mark.parametrize("kind", BUILD)
def test_files_without_the_setting_are_read_as_they_were_trained(kind: str, tmp_path: Path) -> None:
    model = awake(BUILD[kind](sigma_data=None)).eval()
    config = {name: value for name, value in model.config.model_dump(mode="json").items() if name != "sigma_data"}
    path = tmp_path / "older.safetensors"
    save_checkpoint(path, kind, config, model.state_dict())
    loaded = load_model(path)
    assert loaded.config.sigma_data is None
    batch = noised(model)
    assert torch.equal(predicted(loaded, batch, batch["t"]), predicted(model, batch, batch["t"]))
    save_checkpoint(path, kind, config | {"sigma_data": 0.5}, model.state_dict())
    with pytest.raises(CheckpointError, match=r"precondition\.stray"):
        load_model(path)


def test_the_shipped_networks_say_the_target_themselves() -> None:
    folder = shipped_pipelines() / "shapes-tiny"
    for name in ("prior", "decoder", "upsampler-256"):
        path = folder / f"{name}.safetensors"
        assert "sigma_data" not in load_checkpoint(path).config
        assert load_model(path).precondition is None
