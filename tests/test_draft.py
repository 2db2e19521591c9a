"""The draft: what it draws from, how a decoder uses it, and that training keeps the two apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from training_rig import DIM, awake, decoder, draft, drafting, generator, noise

from dalle_2.config import parse
from dalle_2.errors import ConfigError
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.draft import DraftConfig
from dalle_2.training.train_decoder import on_draft


@pytest.mark.parametrize("size", [8, 24, 64])
def test_a_draft_has_its_size_and_every_number_of_the_embedding_counts(size: int) -> None:
    model, z = awake(draft(image_size=size)), noise(2, DIM)
    with torch.no_grad():
        assert model(z).shape == (2, 3, size, size)
        for k in range(DIM):
            moved = z.clone()
            moved[:, k] += 1
            assert not torch.allclose(model(z), model(moved))


def test_the_loss_is_the_mean_square_against_the_picture_after_noise_on_the_embedding() -> None:
    model, batch = awake(draft(z_noise=0.5)), {"z_img": noise(4, DIM), "image": noise(4, 3, 8, 8, seed=1)}
    noised = model.noised(batch, generator())
    assert float(noised["z_noise"].std()) == pytest.approx(0.5, abs=0.2)
    drawn = model(model.space.to_model(batch["z_img"]) + noised["z_noise"])
    assert torch.allclose(model.loss(noised)["loss"], F.mse_loss(drawn, batch["image"]))
    assert not torch.allclose(model.loss(noised)["loss"], model.loss(batch)["loss"])


def test_an_untrained_decoder_says_what_its_draft_says() -> None:
    """Diffusion starts from the draft instead of from nothing."""
    model, z = drafting(guidance=1.0, sigma_data=None), noise(2, DIM)
    x_t, t = noise(2, 3, 8, 8, seed=1), torch.tensor([40, 3])
    with torch.no_grad():
        drawn = model.draft(model.space.to_model(z))
        assert torch.equal(model.denoiser(z)(x_t, t).x_0, drawn.clamp(-1, 1))
        assert torch.equal(model(x_t, z, model.time(t)), drawn)


def test_the_draft_is_drawn_once_a_condition_not_once_a_step() -> None:
    model, calls = drafting(), []
    model.draft.register_forward_hook(lambda *_: calls.append(1))
    model.sample(noise(2, DIM), 5, guidance=2.0, seeds=[0, 1])
    assert len(calls) == 2


def test_a_decoder_with_a_draft_comes_back_from_its_file(tmp_path: Path) -> None:
    model, z = awake(drafting()), noise(2, DIM)
    save_model(model, tmp_path / "decoder.safetensors")
    again = load_model(tmp_path / "decoder.safetensors")
    assert torch.equal(again.sample(z, 2, seeds=[0, 1]), model.eval().sample(z, 2, seeds=[0, 1]))


def test_training_a_decoder_leaves_its_draft_alone(tmp_path: Path) -> None:
    save_model(awake(draft()), tmp_path / "draft.safetensors")
    model = on_draft(decoder({"carry": True}).config, tmp_path / "draft.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    batch = model.noised({"z_img": noise(4, DIM), "image": noise(4, 3, 8, 8, seed=1)}, generator())
    model.loss(batch)["loss"].backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("draft.") for name in changed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draft": {"image_size": 8, "z_dim": DIM}}, "unet.low_res_channels must be 3 with a draft, got 0"),
        ({"unet": {"low_res_channels": 3}}, "unet.low_res_channels must be 0 without a draft, got 3"),
        ({"unet": {"low_res_channels": 3}, "draft": {"image_size": 16, "z_dim": DIM}}, "draws 16 px from 8 numbers"),
        ({"unet": {"low_res_channels": 3}, "draft": {"image_size": 8, "z_dim": 9}}, "draws 8 px from 9 numbers"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    values = {"image_size": 8, **changes, "unet": {**decoder().config.unet.model_dump(), **changes.get("unet", {})}}
    with pytest.raises(ConfigError, match=words):
        parse(DecoderConfig, values)


def test_a_draft_is_made_of_eights() -> None:
    with pytest.raises(ConfigError, match="image_size"):
        parse(DraftConfig, {"image_size": 20})
