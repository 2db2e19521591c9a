"""The processes: noising, losses, denoisers and samples, and that their conversions and shapes are right."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_rig import DIM, UNET, T, awake, decoder, generator, noise, prior, upsampler

from dalle_2.config import parse
from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.checkpoints import load_model
from dalle_2.models.decoder import condition
from dalle_2.models.diffusion import Diffusion
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.upsampler import UpsamplerConfig, blur, enlarge, random_crop, shrink
from dalle_2.paths import shipped_pipelines
from dalle_2.sampling.noise import PictureNoise
from dalle_2.weights.checkpoint import load_checkpoint, save_checkpoint

# Noising and the loss


def clean(rows: int, size: int = 8) -> dict[str, Tensor]:
    z_txt, z_img = noise(rows, DIM, seed=1), noise(rows, DIM, seed=2)
    return {"z_txt": z_txt, "z_img": z_img, "image": noise(rows, 3, size, size, seed=3)}


def test_noising_draws_timesteps_noise_and_drops_at_their_rates() -> None:
    rows = 4000
    noised = prior(drop=0.2).noised(clean(rows), generator())
    assert float(noised["dropped"].float().mean()) == pytest.approx(0.2, abs=4 * (0.16 / rows) ** 0.5)
    assert set(noised["t"].tolist()) == set(range(T))
    assert float(noised["t"].float().mean()) == pytest.approx((T - 1) / 2, abs=4 * T / (12 * rows) ** 0.5)
    assert float(noised["eps"].std()) == pytest.approx(1, abs=0.03)
    assert float(noised["eps"].mean()) == pytest.approx(0, abs=0.03)
    assert not prior(drop=0.0).noised(clean(rows), generator())["dropped"].any()


@pytest.mark.parametrize("model", [prior(), decoder(), upsampler()], ids=lambda model: model.kind)
def test_x_t_is_the_stated_mixture(model: Diffusion) -> None:
    batch = clean(20, 16 if model.kind == "upsampler" else 8)
    noised = model.noised(batch, generator())  # type: ignore[operator]
    x_t = noised["z_t" if model.kind == "prior" else "x_t"]
    a = model.noise_scheduler.alpha_bar[noised["t"]].float().reshape(-1, *[1] * (x_t.ndim - 1))
    assert torch.allclose(x_t, a.sqrt() * noised["x_0"] + (1 - a).sqrt() * noised["eps"], atol=1e-5)
    again = model.noised(batch, generator())  # type: ignore[operator]
    assert all(torch.equal(noised[name], again[name]) for name in noised)
    other = model.noised(batch, generator(1))  # type: ignore[operator]
    assert not torch.equal(noised["eps"], other["eps"])


class Knowing(nn.Module):
    """A network that gives one answer, whatever it is asked."""

    def __init__(self, answer: Tensor, null_z: nn.Parameter | None = None) -> None:
        super().__init__()
        self.answer, self.null_z = answer, null_z

    def forward(self, *inputs: Tensor, **others: Tensor) -> Tensor:
        return self.answer

    def read(self, *condition: Tensor | None) -> None:
        return None

    tell = read


TARGETS = ["eps", "x_0", "v"]


def truth(model: Diffusion, noised: dict[str, Tensor]) -> Tensor:
    """What a perfect network answers, by the definitions of eps, x_0 and v."""
    a = model.noise_scheduler.alpha_bar[noised["t"]].float().reshape(-1, *[1] * (noised["eps"].ndim - 1))
    velocity = a.sqrt() * noised["eps"] - (1 - a).sqrt() * noised["x_0"]
    return {"eps": noised["eps"], "x_0": noised["x_0"], "v": velocity}[model.target]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("carries", ["eps", "x_0"])
@pytest.mark.parametrize("build", [prior, decoder, upsampler])
def test_a_perfect_network_has_no_loss(target: str, carries: str, build: Any) -> None:
    """Whichever of noise and clean data the batch carries, and whichever the network was to say."""
    model = build(target=target, sigma_data=None)
    noised = model.noised(clean(6, 16 if model.kind == "upsampler" else 8), generator())
    # At the noisiest steps noise says nothing about clean data, and at the cleanest the other way round.
    noised["t"] = torch.tensor([3, 10, 20, 30, 40, 45])
    x_t = "z_t" if model.kind == "prior" else "x_t"
    noised[x_t] = model.noise_scheduler.add_noise(noised["x_0"], noised["eps"], noised["t"])
    answer = truth(model, noised)
    if model.kind == "upsampler" and target == "x_0":
        answer = answer - enlarge(noised["low_res"], noised["x_t"].shape[-2:])
    null = None if model.kind == "prior" else model.network.null_z
    model.network = Knowing(answer, null)
    batch = {name: value for name, value in noised.items() if name not in {"eps", "x_0"} - {carries}}
    assert float(model.loss(batch)["loss"]) < 1e-8
    model.network = Knowing(answer + 1, null)
    assert float(model.loss(batch)["loss"]) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("build", [prior, decoder])
def test_a_perfect_network_denoises_perfectly(target: str, build: Any) -> None:
    model = build(target=target, clip=None, sigma_data=None)
    noised = model.noised(clean(4), generator())
    noised["t"] = torch.full((4,), 20)
    x_t = model.noise_scheduler.add_noise(noised["x_0"], noised["eps"], noised["t"])
    z = noised["z_txt" if model.kind == "prior" else "z_img"]
    model.network = Knowing(truth(model, noised), None if model.kind == "prior" else model.network.null_z)
    assert torch.allclose(model.denoiser(z)(x_t, noised["t"]).x_0, noised["x_0"], atol=1e-4)


@pytest.mark.parametrize("build", [prior, decoder, upsampler])
@torch.no_grad()
def test_a_dropped_row_sees_the_null_condition(build: Any) -> None:
    model = awake(build()).eval()
    batch = clean(4, 16 if model.kind == "upsampler" else 8)
    noised = model.noised(batch, generator())
    other = {name: value + 1 if name in ("z_txt", "z_img") else value for name, value in noised.items()}
    for dropped, same in ((True, True), (False, False)):
        rows = torch.full((4,), dropped)
        losses = [float(model.loss(some | {"dropped": rows})["loss"]) for some in (noised, other)]
        assert (losses[0] == losses[1]) == same


def test_the_noise_on_embeddings_is_added_before_rows_are_dropped() -> None:
    z, null = torch.ones(2, DIM), torch.full((DIM,), 7.0)
    batch = {"z_noise": torch.full((2, DIM), 0.5), "dropped": torch.tensor([False, True])}
    assert condition(z, batch, null).tolist() == [[1.5] * DIM, [7.0] * DIM]
    assert torch.equal(condition(z, {}, null), z)
    noised = decoder(z_noise=0.25).noised(clean(2000), generator())
    assert float(noised["z_noise"].std()) == pytest.approx(0.25, rel=0.05)


# Denoisers and sampling


class Counting(nn.Module):
    """Remembers how many rows each pass had."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows = network, []
        self.read, self.tell = getattr(network, "read", None), getattr(network, "tell", None)

    def forward(self, *inputs: Any, **others: Any) -> Tensor:
        self.rows.append(len(inputs[0]))
        return self.network(*inputs, **others)

    @property
    def null_z(self) -> Tensor:
        return self.network.null_z  # type: ignore[return-value]


@pytest.mark.parametrize("build", [prior, decoder, upsampler])
@torch.no_grad()
def test_guidance_costs_a_pass_only_where_it_is_on(build: Any) -> None:
    model = awake(build(clip=None)).eval()
    model.network = Counting(model.network)
    z = noise(3, DIM)
    side = {"prior": (), "decoder": (3, 8, 8), "upsampler": (3, 16, 16)}[model.kind]
    x_t = noise(3, *(side or (DIM,)), seed=1)
    more = {"low_res": noise(3, 3, 8, 8)} if model.kind == "upsampler" else {}
    t = torch.full((3,), 20)
    answers = {w: model.denoiser(z, guidance=w, **more)(x_t, t).x_0 for w in (1.0, 0.0, 3.0)}
    assert model.network.rows == [3, 6, 6]
    expected = answers[0.0] + 3 * (answers[1.0] - answers[0.0])
    assert torch.allclose(answers[3.0], expected, atol=1e-4)
    assert not torch.allclose(answers[0.0], answers[1.0])
    null = model.space.from_model(model.network.null_z) if side else model.text_space.from_model(model.null_text)
    bare = model.denoiser(null.expand(3, -1), guidance=1.0, **more)(x_t, t).x_0
    assert torch.allclose(bare, answers[0.0], atol=1e-4)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_one_decoder_may_draw_at_any_size(size: int) -> None:
    model = awake(decoder({"patch": 8, "multiples": (1, 2)}, image_size=size))
    x = model.sample(noise(1, DIM), 2, seeds=[1])
    assert x.shape == (1, 3, size, size)
    assert float(x.abs().max()) <= 1
    assert torch.equal(x, model.sample(noise(1, DIM), 2, seeds=[1]))
    assert not torch.equal(x, model.sample(noise(1, DIM), 2, seeds=[2]))


def test_the_prior_samples_into_its_space() -> None:
    z = awake(prior()).sample(noise(3, DIM), 4, seeds=[1, 2, 3])
    assert z.shape == (3, DIM)
    assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-5)


def narrow(width: int) -> EmbeddingSpace:
    """A space whose networks see its first dimensions only."""
    return EmbeddingSpace(dim=DIM, basis=tuple(map(tuple, torch.eye(DIM)[:width].tolist())), mean=(0.1,) * width,
                          std=(0.5,) * width)  # fmt: skip


def test_a_prior_of_few_directions_stays_in_them() -> None:
    model = awake(prior(space=narrow(3)))
    z = model.sample(noise(3, DIM), 4, seeds=[1, 2, 3])
    assert z.shape == (3, DIM)
    assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-5)
    assert z[:, :3].abs().min() > 0 == z[:, 3:].abs().max()
    batch = model.noised(clean(5), generator())
    assert batch["z_t"].shape == (5, 3)
    assert model.loss(batch)["loss"].isfinite()


def test_a_decoder_of_few_directions_is_blind_to_the_others() -> None:
    model = awake(decoder({"z_dim": 3}, space=narrow(3), z_noise=0.1)).eval()
    assert model.loss(model.noised(clean(5), generator()))["loss"].isfinite()
    z = noise(1, DIM)
    other = z + F.pad(noise(1, DIM - 3, seed=1), (3, 0))
    for given, same in ((other, True), (z + F.pad(torch.ones(1, 1), (0, DIM - 1)), False)):
        pictures = (model.sample(x, 2, seeds=[1]) for x in (z, given))
        assert torch.allclose(*pictures, atol=1e-5) == same


@pytest.mark.parametrize("eta", [-0.1, 1.0, math.nan])
def test_eta_outside_its_range_is_refused(eta: float) -> None:
    with pytest.raises(UsageError, match="eta must be at least 0 and below 1"):
        decoder().sample(noise(1, DIM), 2, eta)


# The upsampler


def test_a_crop_of_the_small_picture_is_the_small_picture_of_a_crop() -> None:
    """A picture that names its own pixels shows where each crop was cut."""
    size, crop, scale = 32, 16, 4
    image = torch.arange(float(size * size)).reshape(1, 1, size, size).expand(40, 3, -1, -1)
    crops = random_crop(image, crop, scale, generator())
    corners = [divmod(int(row[0, 0, 0]), size) for row in crops]
    assert len(set(corners)) > 10
    assert max(max(corner) for corner in corners) == size - crop
    small = shrink(image, scale)
    for row, (top, left) in zip(crops, corners, strict=True):
        assert (top % scale, left % scale) == (0, 0)
        assert torch.equal(row, image[0, :, top : top + crop, left : left + crop])
        cut = small[0, :, top // scale : (top + crop) // scale, left // scale : (left + crop) // scale]
        assert torch.equal(shrink(row[None], scale)[0], cut)
    assert random_crop(image, None, scale, generator()) is image


def test_training_sees_aligned_pairs() -> None:
    model = upsampler(crop=8, blur=0.0)
    noised = model.noised(clean(5, 16), generator())
    assert noised["x_0"].shape == (5, 3, 8, 8)
    assert torch.allclose(noised["low_res"], F.avg_pool2d(noised["x_0"], 2))


def test_corruption_blurs_half_of_the_rows_and_adds_noise() -> None:
    batch = clean(400, 16)
    sharp = upsampler(blur=0.0).noised(batch, generator())["low_res"]
    blurred = upsampler(blur=0.6).noised(batch, generator())["low_res"]
    touched = (sharp != blurred).flatten(1).any(1).float().mean()
    assert float(touched) == pytest.approx(0.5, abs=0.1)
    noisy = upsampler(blur=0.0, corruption=0.2).noised(batch, generator())["low_res"]
    assert float((noisy - sharp).std()) == pytest.approx(0.2, rel=0.02)


def test_blur_is_a_gaussian_of_its_width() -> None:
    point = torch.zeros(1, 2, 5, 5)
    point[:, :, 2, 2] = 1
    weights = [math.exp(-0.5 * (k / 0.6) ** 2) for k in (-1, 0, 1)]
    expected = torch.tensor([[a * b / sum(weights) ** 2 for a in weights] for b in weights])
    for channel in blur(point, 0.6)[0]:
        assert torch.allclose(channel[1:4, 1:4], expected, atol=1e-6)
        assert float(channel.sum()) == pytest.approx(1)
    flat = torch.full((1, 3, 4, 4), 0.3)
    assert torch.allclose(blur(flat, 0.6), flat)
    assert blur(point, 0.01) is point


def test_the_second_upsamplers_small_pictures_are_degraded() -> None:
    """And all else is as with a blur: crops, noise and timesteps come first."""
    batch = {"z_img": noise(5, DIM), "image": noise(5, 3, 32, 32, seed=3).clamp(-1, 1)}
    sizes = {"image_size": 32, "low_res_size": 8, "crop": 16}
    blurred, worse = (upsampler(degradation=way, **sizes).noised(batch, generator()) for way in ("blur", "bsr"))
    assert all(torch.equal(blurred[name], worse[name]) for name in ("x_0", "x_t", "t", "eps"))
    assert worse["low_res"].shape == (5, 3, 4, 4)
    assert not torch.equal(worse["low_res"], blurred["low_res"])
    mild = upsampler(degradation="bsr", bsr={"strength": (0.0, 0.0)}, **sizes).noised(batch, generator())
    assert not torch.equal(mild["low_res"], worse["low_res"])


def test_an_upsampler_learns_from_degraded_pictures() -> None:
    model = upsampler({"patch": 2}, degradation="bsr", image_size=32, low_res_size=8, crop=16, noise_levels=10)
    batch = model.noised({"z_img": noise(8, DIM), "image": noise(8, 3, 32, 32).clamp(-1, 1)}, generator())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(16):
        loss = model.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


class Watching(nn.Module):
    """Remembers what it was shown, and answers zero."""

    def __init__(self, null_z: nn.Parameter) -> None:
        super().__init__()
        self.null_z, self.low_res, self.t_emb = null_z, None, None

    def forward(self, x_t: Tensor, z: Tensor, t_emb: Tensor, *, low_res: Tensor) -> Tensor:
        self.low_res, self.t_emb = low_res, t_emb
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("levels", [0, 20])
@torch.no_grad()
def test_sampling_shows_the_network_what_training_showed_it(levels: int) -> None:
    """The same small pictures, enlarged by the same filter, at the same timestep and noise level."""
    model = upsampler(blur=0.0, noise_levels=levels)
    noised = model.noised(clean(4, 16), generator())
    level = int(noised["level"][0]) if levels else 0
    noised |= {"t": torch.full((4,), 7)} | ({"level": torch.full((4,), level)} if levels else {})
    model.network = watching = Watching(model.network.null_z)
    model.loss(noised)
    trained = watching.low_res, watching.t_emb
    denoiser = model.denoiser(noised["z_img"], low_res=noised["low_res"], noise_level=level)
    denoiser(noised["x_t"], noised["t"])
    assert torch.equal(watching.low_res, trained[0])
    assert torch.equal(watching.t_emb, trained[1])
    low_res, t_emb = noised["low_res"], model.embed(noised["t"], noised.get("level"))
    model(noised["x_t"], low_res, noised["z_img"], t_emb)
    assert torch.equal(watching.low_res, trained[0])


def test_small_pictures_are_noised_at_levels_drawn_for_each() -> None:
    rows, levels = 4000, 20
    model, plain = upsampler(noise_levels=levels, blur=0.0), upsampler(blur=0.0)
    batch = clean(rows, 16)
    noised, sharp = (m.noised(batch, generator()) for m in (model, plain))
    assert noised.keys() - sharp.keys() == {"level"}
    assert set(noised["level"].tolist()) == set(range(levels + 1))
    for level in (0, 1, 10, 20):
        chosen = noised["level"] == level
        a = float(model.noise_scheduler.alpha_bar[level - 1]) if level else 1.0
        added = noised["low_res"][chosen] - math.sqrt(a) * sharp["low_res"][chosen]
        assert float(added.std()) == pytest.approx(math.sqrt(1 - a), rel=0.05, abs=1e-6)
    assert all(torch.equal(noised[name], sharp[name]) for name in ("x_t", "t", "x_0", "eps", "dropped"))


def test_the_noise_level_reaches_network_and_picture() -> None:
    model, low_res, z = awake(upsampler(noise_levels=20, noise_level=5)), noise(2, 3, 8, 8).clamp(-1, 1), noise(2, DIM)
    t = torch.tensor([3, 3])
    assert not torch.allclose(model.embed(t, torch.tensor([0, 9])), model.embed(t))
    assert torch.equal(model.embed(t), model.embed(t, torch.tensor([0, 0])))
    drawn = {level: model.sample(z, low_res, 2, seeds=[1, 2], noise_level=level) for level in (None, 0, 5, 20)}
    assert torch.equal(drawn[None], drawn[5])
    assert all(not torch.allclose(drawn[0], drawn[level]) for level in (5, 20))
    assert torch.allclose(drawn[20][1:], model.sample(z[1:], low_res[1:], 2, seeds=[2], noise_level=20), atol=1e-4)
    model.network = watching = Watching(model.network.null_z)
    many = torch.zeros(300, 3, 8, 8)
    model.sample(None, many, 1, seeds=range(300), noise_level=20)
    deviation = math.sqrt(1 - float(model.noise_scheduler.alpha_bar[19]))
    expected = enlarge(noise(300, 3, 8, 8) * deviation, (16, 16)).std()
    assert float(watching.low_res.std()) == pytest.approx(float(expected), rel=0.05)
    for level in (-1, 21):
        with pytest.raises(UsageError, match=f"noise_level must be a whole number from 0 to 20 .*, got {level}"):
            model.sample(z, low_res, 2, noise_level=level)


def test_the_noise_of_small_pictures_is_not_that_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = upsampler(noise_levels=20), []
    monkeypatch.setattr(model, "at_level", lambda low_res, eps, level: (drawn.append(eps), low_res)[1])
    model.sample(None, torch.zeros(2, 3, 8, 8), 1, seeds=[1, 2], noise_level=20)
    (eps,) = drawn
    assert not torch.allclose(eps, PictureNoise([1, 2], "upsampler-16").normal(eps.shape))
    assert not torch.allclose(eps[0], eps[1])


def test_an_upsampler_without_levels_ignores_them_and_has_no_weights_for_them() -> None:
    model, low_res = awake(upsampler()), noise(1, 3, 8, 8).clamp(-1, 1)
    assert not any(name.startswith("level") for name in model.state_dict())
    plain = model.sample(None, low_res, 2, seeds=[1])
    assert torch.equal(plain, model.sample(None, low_res, 2, seeds=[1], noise_level=500))
    t = torch.tensor([3])
    assert torch.equal(model.embed(t, torch.tensor([9])), model.time(t))
    assert "level" not in model.noised(clean(3, 16), generator())


def test_weights_from_before_these_settings_still_load(tmp_path: Path) -> None:
    """An older file knows neither degradations nor levels."""
    new = load_checkpoint(shipped_pipelines() / "shapes-tiny" / "upsampler-256.safetensors")
    config = {name: new.config[name] for name in new.config.keys() - {"degradation", "bsr", "noise_levels"}}
    assert len(config) == len(new.config) - 3
    old = tmp_path / "upsampler.safetensors"
    save_checkpoint(old, "upsampler", config, new.tensors)
    loaded = load_model(old, "upsampler").config
    assert (loaded.degradation, loaded.noise_levels) == ("blur", 0)


def test_an_upsampler_learns_no_variance() -> None:
    with pytest.raises(ConfigError, match="an upsampler learns no variance"):
        parse(UpsamplerConfig, {"learned_variance": True})


def test_the_upsampler_enlarges() -> None:
    model = upsampler(clip=None, sigma_data=None)
    low_res = noise(2, 3, 8, 8).clamp(-1, 1)
    plain = model.sample(noise(2, DIM), low_res, 2, seeds=[0, 1])
    assert plain.shape == (2, 3, 16, 16)
    # Untrained it answers zero, and what it adds detail to is the enlarged picture.
    assert torch.allclose(plain, enlarge(low_res, (16, 16)), atol=1e-5)


def test_without_an_embedding_the_null_embedding_stands_in() -> None:
    model, low_res = awake(upsampler()), noise(2, 3, 8, 8).clamp(-1, 1)
    without = model.sample(None, low_res, 2, seeds=[0, 1])
    assert without.isfinite().all()
    null = model.space.from_model(model.network.null_z.detach()).expand(2, -1)
    assert torch.allclose(without, model.sample(null, low_res, 2, seeds=[0, 1]), atol=1e-5)
    assert not torch.equal(without, model.sample(noise(2, DIM), low_res, 2, seeds=[0, 1]))


def test_a_small_picture_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(UsageError, match=r"takes 8-px pictures, got \(16, 16\): resize them first"):
        upsampler().sample(None, noise(1, 3, 16, 16), 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 20}, "image_size 20 must be a multiple of low_res_size 8"),
        ({"crop": 9}, "crop 9 must be divisible by 2 and by the scale 2"),
        ({"crop": 32}, "crop 32 is larger than image_size 16"),
        ({"noise_levels": 1001}, "noise_levels must be at most T = 1000 and noise_level .*, got 1001 and 0"),
        ({"noise_levels": 5, "noise_level": 6}, "noise_level at most noise_levels, got 5 and 6"),
        ({"degradation": "snow"}, "'degradation'.*'blur' or 'bsr'.*'snow'"),
    ],
)
def test_settings_of_the_upsampler_must_fit(changes: dict[str, Any], words: str) -> None:
    network = UNET | {"attention": (), "middle_attention": False, "low_res_channels": 3}
    with pytest.raises(ConfigError, match=words):
        parse(UpsamplerConfig, {"image_size": 16, "low_res_size": 8, "unet": network} | changes)
