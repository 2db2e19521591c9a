"""Networks and processes: what they see, what they are asked, and that their conversions and shapes are right."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_rig import DIM, UNET, T, awake, decoder, prior, upsampler

from dalle_2 import DecoderUNet, PriorTransformer, TimestepEmbedder
from dalle_2.config import parse
from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.decoder import DecoderConfig, condition
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.diffusion import Diffusion
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.layers.modulated import ModulatedBlock
from dalle_2.models.layers.transformer import Transformer
from dalle_2.models.prior import PriorConfig
from dalle_2.models.timestep_embedding import sinusoid
from dalle_2.models.upsampler import UpsamplerConfig, blur, enlarge, random_crop, shrink


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def unet(**changes: Any) -> DecoderUNet:
    torch.manual_seed(0)
    return awake(DecoderUNet(parse(DecoderUNetConfig, UNET | changes))).eval()


# Timesteps


@pytest.mark.parametrize("dim", [6, 7, 512])
def test_timesteps_come_flat_or_as_a_column(dim: int) -> None:
    embed = TimestepEmbedder(dim)
    t = torch.tensor([0, 3, 999])
    assert embed(t).shape == (3, dim)
    assert torch.equal(embed(t), embed(t[:, None]))
    assert torch.equal(embed(t), embed(t.float()))
    assert embed(torch.tensor([5])).shape == (1, dim)


def test_the_sinusoid_is_its_formula() -> None:
    t = torch.tensor([0.0, 7.0, 321.5])
    rows = sinusoid(t, 8)
    for row, moment in zip(rows, t.tolist(), strict=True):
        angles = [moment * 10_000 ** (-k / 4) for k in range(4)]
        assert row.tolist() == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-4)
    assert len({tuple(row) for row in sinusoid(torch.arange(1000.0), 128).tolist()}) == 1000
    with pytest.raises(UsageError, match="must be even and at least 2, got 7"):
        TimestepEmbedder(8, sinusoid=7)


# The prior's network


def prior_states(model: PriorTransformer, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The four tokens before the last block, which works for the query alone, and the answer."""
    seen: list[Tensor] = []
    norm = model.transformer.blocks[-1].norm_1
    handle = norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # type: ignore[operator]
    with torch.no_grad():
        answer = model(*inputs)
    handle.remove()
    return seen[0], answer


def test_the_prior_sees_backwards_only() -> None:
    """Tokens are z_txt, t, z_t, query: a change reaches its own position and later ones, none before."""
    torch.manual_seed(0)
    model = awake(PriorTransformer(DIM, 3, 2, width=16)).eval()
    inputs = [noise(3, DIM, seed=1), noise(3, DIM, seed=2), noise(3, 16, seed=3)]
    states, answer = prior_states(model, *inputs)
    assert answer.shape == (3, DIM)
    for argument, position in ((0, 0), (2, 1), (1, 2)):
        changed = [x + (number == argument) for number, x in enumerate(inputs)]
        other, other_answer = prior_states(model, *changed)
        assert torch.equal(other[:, :position], states[:, :position])
        assert all(not torch.allclose(other[:, k], states[:, k]) for k in range(position, 4))
        assert not torch.allclose(other_answer, answer)
    with torch.no_grad():
        model.query.add_(1)
    other, other_answer = prior_states(model, *inputs)
    assert torch.equal(other[:, :3], states[:, :3])
    assert not torch.allclose(other_answer, answer)


def test_a_modulated_block_is_its_formula() -> None:
    block = ModulatedBlock(6)
    x, condition = noise(4, 6), noise(4, 6, seed=1)

    def plain(x: Tensor, scale: float, shift: float) -> Tensor:
        a, b = block.halves(F.layer_norm(x, (6,)) * (1 + scale) + shift).chunk(2, dim=-1)
        return block.out(a * F.gelu(b))

    assert torch.allclose(block(x, condition), x + plain(x, 0, 0), atol=1e-6)
    block.modulation.bias.data = torch.tensor([0.3, -0.2, 2.0]).repeat_interleave(6)
    assert torch.allclose(block(x, condition), x + 3 * plain(x, 0.3, -0.2), atol=1e-5)
    block.modulation.weight.data.normal_()
    assert not torch.allclose(block(x, condition), block(x, -condition), atol=1e-2)


def test_refinement_sees_all_that_the_query_saw() -> None:
    """Even where the transformer's own answer is cut off, every input still reaches the prediction."""
    model = awake(PriorTransformer(DIM, 1, 2, width=16, image_dim=5, refine=2)).eval()
    inputs = noise(3, DIM, seed=1), noise(3, 5, seed=2), noise(3, 16, seed=3)
    model.transformer.last = lambda tokens: torch.zeros(len(tokens), 16)  # type: ignore[assignment, method-assign]
    answer = model(*inputs)
    assert answer.shape == (3, 5)
    for argument in range(3):
        changed = [x + (number == argument) for number, x in enumerate(inputs)]
        assert not torch.allclose(model(*changed), answer, atol=1e-3)


@pytest.mark.parametrize("refine", [0, 2])
def test_the_prior_answers_row_by_row(refine: int) -> None:
    model = awake(PriorTransformer(DIM, 1, 2, width=16, refine=refine)).eval()
    inputs = noise(5, DIM, seed=1), noise(5, DIM, seed=2), noise(5, 16, seed=3)
    rows = torch.cat([model(*(x[k : k + 1] for x in inputs)) for k in range(5)])
    assert torch.allclose(model(*inputs), rows, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_the_last_token_alone_is_the_last_of_all(depth: int, causal: bool) -> None:
    torch.manual_seed(0)
    model = awake(Transformer(16, depth, 4, causal=causal)).eval()
    x = noise(3, 5, 16)
    assert torch.allclose(model.last(x), model(x)[:, -1], atol=1e-5)


def test_a_priors_heads_must_divide_its_width() -> None:
    with pytest.raises(ConfigError, match="width 16 must be a multiple of heads 3"):
        parse(PriorConfig, {"width": 16, "heads": 3})


# The U-Net


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_the_unet_keeps_the_shape(patch: int, scale_shift: bool) -> None:
    model = unet(patch=patch, scale_shift=scale_shift, multiples=(1, 2, 3), attention=(0, 2), blocks=2)
    assert model(noise(2, 3, 16, 32), noise(2, DIM), noise(2, 16)).shape == (2, 3, 16, 32)
    assert unet(patch=patch, out_channels=6)(noise(1, 3, 8, 8), noise(1, DIM), noise(1, 16)).shape == (1, 6, 8, 8)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_equal_widths_of_embedding_and_time_confuse_nothing(rows: int) -> None:
    model = unet(z_dim=16, t_dim=16)
    x, z, t_emb = noise(rows, 3, 8, 8), noise(rows, 16, seed=1), noise(rows, 16, seed=2)
    together = model(x, z, t_emb)
    alone = torch.cat([model(x[k : k + 1], z[k : k + 1], t_emb[k : k + 1]) for k in range(rows)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, model(x, t_emb, z))


def test_each_way_of_the_embedding_leads_to_the_picture() -> None:
    """Through the time embedding, the context tokens of attention, a coarse map; without them there is none."""

    @torch.no_grad()
    def influence(context_tokens: int, summed: bool, z_map_channels: int = 0) -> float:
        model = unet(context_tokens=context_tokens, z_map_channels=z_map_channels, z_map_side=2)
        if not summed:
            nn.init.zeros_(model.embed_z.weight)
        x, t_emb = noise(1, 3, 8, 8), noise(1, 16)
        return float((model(x, noise(1, DIM, seed=1), t_emb) - model(x, noise(1, DIM, seed=2), t_emb)).abs().max())

    assert influence(4, summed=False) > 1e-4
    assert influence(0, summed=True) > 1e-4
    assert influence(0, summed=False, z_map_channels=2) > 1e-4
    assert influence(0, summed=False) == 0


def test_what_a_small_network_reads_is_stacked_under_the_embedding() -> None:
    """Without its own numbers the U-Net still sees the embedding, and the other way round."""
    model, x, t_emb = unet(z_hidden=3), noise(1, 3, 8, 8), noise(1, 16)

    @torch.no_grad()
    def influence() -> float:
        return float((model(x, noise(1, DIM, seed=1), t_emb) - model(x, noise(1, DIM, seed=2), t_emb)).abs().max())

    for blind in (slice(DIM), slice(DIM, None)):
        assert influence() > 1e-4
        model.embed_z.weight.data[:, blind] = 0
        model.context.weight.data[:, blind] = 0
    assert influence() == 0


def test_a_carried_picture_is_added_by_a_factor_of_time() -> None:
    plain, carrying = unet(), unet(carry=True)
    carry = {"carry.weight": torch.ones(1, 16), "carry.bias": torch.zeros(1)}
    carrying.load_state_dict({**plain.state_dict(), **carry})
    x, z, t_emb = noise(2, 3, 16, 16), noise(2, DIM, seed=1), noise(2, 16, seed=2)
    factor = F.silu(t_emb).sum(dim=1)[:, None, None, None]
    assert torch.allclose(carrying(x, z, t_emb), plain(x, z, t_emb) + factor * x, atol=1e-5)
    with pytest.raises(ConfigError, match="out_channels must be 3, got 6"):
        unet(carry=True, out_channels=6)


def test_each_input_counts() -> None:
    model = unet(low_res_channels=3)
    x, z, t_emb, low = noise(1, 3, 8, 8), noise(1, DIM), noise(1, 16), noise(1, 3, 8, 8, seed=1)
    answer = model(x, z, t_emb, low_res=low)
    assert not torch.allclose(answer, model(x + 1, z, t_emb, low_res=low))
    assert not torch.allclose(answer, model(x, z, t_emb + 1, low_res=low))
    assert not torch.allclose(answer, model(x, z, t_emb, low_res=low + 1))


def test_equal_seeds_give_equal_networks() -> None:
    first, second = unet(), unet()
    x = noise(2, 3, 8, 8), noise(2, DIM), noise(2, 16)
    assert torch.equal(first(*x), second(*x))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention": (2,)}, "attention names level 2, but the levels are 0 to 1"),
        ({"multiples": ()}, "a U-Net needs at least one level"),
        ({"channels": 100, "head_channels": 64}, "200 channels can't attend in heads of 64"),
        ({"channels": 100, "head_channels": 30, "attention": (0,)}, "100 channels can't attend in heads of 30"),
        ({"channels": 0}, "'channels'"),
        ({"patch": 0}, "'patch'"),
        ({"dropout": 1.0}, "'dropout'"),
    ],
)
def test_settings_of_the_unet_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(DecoderUNetConfig, UNET | changes)


def test_pictures_that_do_not_fit_the_unet_are_refused() -> None:
    model = unet(patch=2)
    with pytest.raises(UsageError, match="takes sides divisible by 4, got 8 x 6 px"):
        model(noise(1, 3, 8, 6), noise(1, DIM), noise(1, 16))
    with pytest.raises(UsageError, match="takes 0 channels of low_res, got 3"):
        model(noise(1, 3, 8, 8), noise(1, DIM), noise(1, 16), low_res=noise(1, 3, 8, 8))
    with pytest.raises(UsageError, match="takes 3 channels of low_res, got 0"):
        unet(low_res_channels=3)(noise(1, 3, 8, 8), noise(1, DIM), noise(1, 16))
    with pytest.raises(ConfigError, match="image_size 10 must be divisible by 4"):
        parse(DecoderConfig, {"image_size": 10, "unet": UNET | {"patch": 2}})


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


def test_a_share_of_the_rows_is_moved_to_the_noisiest_quarter() -> None:
    rows, even = 4000, 1 - 0.3
    t = prior(noisy=0.3).draw_timesteps(rows, generator())
    assert set(t.tolist()) == set(range(T))
    share = float((t >= 3 * T // 4).float().mean())
    assert share == pytest.approx(0.3 + even / 4, abs=4 * (0.25 / rows) ** 0.5)
    assert float(t[t < 3 * T // 4].float().mean()) == pytest.approx((3 * T // 4 - 1) / 2, rel=0.05)
    assert int(prior(noisy=1.0).draw_timesteps(rows, generator()).min()) == 3 * T // 4


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
    model = build(target=target)
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
    model = build(target=target, clip=None)
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


def test_the_upsampler_enlarges() -> None:
    model = upsampler(clip=None)
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
    ],
)
def test_sizes_of_the_upsampler_must_fit(changes: dict[str, int], words: str) -> None:
    network = UNET | {"attention": (), "middle_attention": False, "low_res_channels": 3}
    with pytest.raises(ConfigError, match=words):
        parse(UpsamplerConfig, {"image_size": 16, "low_res_size": 8, "unet": network} | changes)
