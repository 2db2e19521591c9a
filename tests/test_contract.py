"""The user's contract: every class and call of its table once, positionally, with the shapes written out."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import dalle_2
from dalle_2 import (
    CLIP,
    CLIPEncoder,
    DALLe2,
    DALLe2Trainer,
    DDIMSampler,
    Decoder,
    DecoderUNet,
    NoiseScheduler,
    Prior,
    PriorTransformer,
    TimestepEmbedder,
    Tokenizer,
)
from dalle_2.errors import HubError
from dalle_2.models.checkpoints import save_model
from dalle_2.models.clip import CLIPConfig
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.prior import PriorConfig

B, T = 3, 20
PROMPTS = ["a red circle", "a blue square", "a red square"]
PICTURES = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "white")]
HOMES = {
    "CLIPEncoder": "models.clip_encoding",
    "DALLe2": "models.dalle2",
    "DALLe2Trainer": "training.trainer",
    "DDIMSampler": "sampling.ddim_sampler",
    "Decoder": "models.decoder",
    "DecoderUNet": "models.decoder_unet",
    "NoiseScheduler": "sampling.noise_scheduler",
    "Prior": "models.prior",
    "PriorTransformer": "models.prior_transformer",
    "TimestepEmbedder": "models.timestep_embedding",
}


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior(T)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(T)


@pytest.fixture(scope="module")
def clip_encoder() -> CLIPEncoder:
    """512-d as the default one, which needs the hub."""
    tower = {"width": 16, "depth": 1, "heads": 2}
    settings = {"vision": tower | {"image_size": 16, "patch": 8}, "text": tower | {"vocab_size": 300}}
    clip = CLIP.from_config(CLIPConfig.model_validate(settings))
    return CLIPEncoder(clip.eval(), tokenizer=Tokenizer.train(PROMPTS, 280, 32))


def small_decoder() -> Decoder:
    unet = {"channels": 16, "multiples": (1,), "blocks": 1, "attention": (), "middle_attention": False, "patch": 4}
    return Decoder.from_config(DecoderConfig.model_validate({"T": T, "image_size": 16, "unet": unet | {"t_dim": 16}}))


def small_prior() -> Prior:
    return Prior.from_config(PriorConfig(T=T, width=32, depth=1, heads=2))


@pytest.mark.parametrize(("name", "module"), HOMES.items())
def test_each_class_lives_in_its_own_file_and_in_the_package(name: str, module: str) -> None:
    home = __import__(f"dalle_2.{module}", fromlist=[name])
    assert getattr(dalle_2, name) is getattr(home, name)
    assert getattr(home, name).__module__ == f"dalle_2.{module}"


def test_timestep_embedder() -> None:
    embedder = TimestepEmbedder()
    assert embedder(torch.tensor([0, 5, 19])).shape == (B, 512)
    assert embedder(torch.tensor([[0.0], [5.0], [19.0]])).shape == (B, 512)
    assert TimestepEmbedder(64)(torch.tensor([0])).shape == (1, 64)
    assert [type(layer).__name__ for layer in embedder.mlp] == ["Linear", "SiLU", "Linear"]
    assert embedder.mlp[0].in_features == 128


def test_clip_encoder(clip_encoder: CLIPEncoder) -> None:
    z_txt, z_img = clip_encoder.encode_text(PROMPTS), clip_encoder.encode_images(PICTURES)
    assert clip_encoder.dim == 512
    for z in (z_txt, z_img):
        assert z.shape == (3, 512)
        assert z.dtype == torch.float32
        assert not z.requires_grad
        torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
    with pytest.raises(HubError, match="laion/CLIP-ViT-B-32-laion2B-s34B-b79K"):
        CLIPEncoder()  # no network in tests


def test_noise_scheduler() -> None:
    scheduler = NoiseScheduler()
    t = torch.tensor([0, 500, 999])
    for get in (scheduler.get_beta_t, scheduler.get_alpha_t, scheduler.get_alpha_bar_t):
        assert get(t, 0.5).shape == (B,)
        assert torch.equal(get(t, 0.5), get(t))
    torch.testing.assert_close(scheduler.get_alpha_t(t), 1 - scheduler.get_beta_t(t))
    assert NoiseScheduler(T).get_alpha_bar_t(torch.tensor([T - 1]), 0.0).item() < 0.05


def test_ddim_sampler(prior: Prior, decoder: Decoder) -> None:
    z_cond = torch.zeros(B, 512)
    assert DDIMSampler(prior.noise_scheduler).sample(prior, z_cond, (B, 512), 2).shape == (B, 512)
    sampler = DDIMSampler(decoder.noise_scheduler)
    assert sampler.sample(decoder, z_cond[:1], (1, 3, 16, 16), 1).shape == (1, 3, 16, 16)


def test_prior_transformer() -> None:
    network = PriorTransformer(512, 6, 8)
    z_txt, z_t, t_emb = torch.randn(3, B, 512).unbind(0)
    assert network(z_txt, z_t, t_emb).shape == (B, 512)
    with torch.device("meta"):
        default = PriorTransformer()
    assert {n: p.shape for n, p in default.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}


def test_prior(prior: Prior) -> None:
    z_txt, x_t = torch.randn(2, B, 512).unbind(0)
    assert prior(z_txt, x_t, prior.time(torch.tensor([0, 5, 19]))).shape == (B, 512)
    assert prior.sample(z_txt, 2).shape == (B, 512)
    assert prior.noise_scheduler.T == T
    assert prior.target == "eps"


def test_decoder_unet(decoder: Decoder) -> None:
    x_t, (z_img, t_emb) = torch.randn(B, 3, 8, 16), torch.randn(2, B, 512).unbind(0)
    assert isinstance(decoder.network, DecoderUNet)
    assert decoder.network(x_t, z_img, t_emb).shape == (B, 3, 8, 16)
    with torch.device("meta"):  # not filled
        assert DecoderUNet().config == decoder.network.config


def test_decoder(decoder: Decoder) -> None:
    x_t, z_img = torch.randn(B, 3, 16, 16), torch.randn(B, 512)
    assert decoder(x_t, z_img, decoder.time(torch.tensor([0, 5, 19]))).shape == (B, 3, 16, 16)
    assert decoder.target == "x_0"
    x_0 = decoder.sample(z_img[:1], 1, 0.5)
    assert x_0.shape == (1, 3, 64, 64)
    assert x_0.abs().max() <= 1
    for eta in (-0.1, 1.0):
        with pytest.raises(ValueError, match="eta"):
            decoder.sample(z_img, 1, eta)


def test_dalle2(clip_encoder: CLIPEncoder, tmp_path: Path) -> None:
    prior_path, decoder_path = str(tmp_path / "prior.pth"), str(tmp_path / "decoder.pth")
    save_model(small_prior(), prior_path)
    save_model(small_decoder(), decoder_path)
    scheduler = NoiseScheduler(T)
    model = DALLe2(prior_path, decoder_path, clip_encoder, DDIMSampler(scheduler), DDIMSampler(scheduler))
    x_0 = model.generate(PROMPTS, 2, 0.5)
    assert x_0.shape == (3, 3, 16, 16)
    assert x_0.abs().max() <= 1
    assert model._encode_text(PROMPTS).shape == (3, 512)
    assert model._encode_images(PICTURES).shape == (3, 512)


def test_trainer_of_a_prior(tmp_path: Path) -> None:
    model, pairs = small_prior(), {"z_txt": torch.randn(8, 512), "z_img": torch.randn(8, 512)}
    trainer = built_trainer(model, "prior", pairs, tmp_path)
    before = weights(model)
    t, (z_t, z_txt, eps) = torch.tensor([0, 5, 19]), torch.randn(3, B, 512).unbind(0)
    loss = trainer.train_step({"z_t": z_t, "z_txt": z_txt, "t": t, "eps": eps})
    assert isinstance(loss, float)
    share = 1 - model.noise_scheduler.get_alpha_bar_t(t).float()[:, None]
    guess = share.sqrt() * z_t  # an untrained network says 0, and adds that to the best linear guess
    assert loss == pytest.approx(float(((guess - eps) ** 2).mean()), rel=1e-4)
    assert not torch.equal(before, weights(model))
    assert trainer.train_one_epoch(0) is None
    assert trainer.train(2) is None
    assert trainer.images == B + 8 + 8


def test_trainer_of_a_decoder(tmp_path: Path) -> None:
    model, pairs = small_decoder(), {"z_img": torch.randn(4, 512), "image": torch.rand(4, 3, 16, 16) * 2 - 1}
    trainer = built_trainer(model, "decoder", pairs, tmp_path)
    t, x_t, x_0 = torch.tensor([0, 5, 19]), *torch.randn(2, B, 3, 16, 16).unbind(0)
    loss = trainer.train_step({"x_t": x_t, "z_img": torch.randn(B, 512), "t": t, "x_0": x_0})
    kept = model.noise_scheduler.get_alpha_bar_t(t).float()[:, None, None, None]
    guess = kept.sqrt() * 0.25 / (kept * 0.25 + 1 - kept) * x_t  # of pictures with the standard deviation 0.5
    assert loss == pytest.approx(float(((guess - x_0) ** 2).mean()), rel=1e-4)
    trainer.train_one_epoch(0)
    trainer.train(1)


def built_trainer(
    model: Prior | Decoder, model_type: str, pairs: dict[str, torch.Tensor], folder: Path
) -> DALLe2Trainer:
    rows = [dict(zip(pairs, row, strict=True)) for row in zip(*pairs.values(), strict=True)]
    return DALLe2Trainer(
        model,
        model_type,
        torch.optim.AdamW(model.parameters(), 1e-3),
        model.noise_scheduler,
        DDIMSampler(model.noise_scheduler),
        DataLoader(rows, batch_size=4),
        False,
        str(folder),
        10,
    )


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
