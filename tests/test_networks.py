"""The networks: what they see, what they are asked, and that their shapes are right."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_rig import DIM, UNET, awake, noise

from dalle_2 import DecoderUNet, PriorTransformer, TimestepEmbedder
from dalle_2.config import parse
from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.layers.modulated import ModulatedBlock
from dalle_2.models.layers.transformer import Transformer
from dalle_2.models.prior import PriorConfig
from dalle_2.models.timestep_embedding import sinusoid


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


def test_a_carried_picture_is_added_by_a_factor_of_time() -> None:
    plain, carrying = unet(), unet(carry=True)
    carry = {"carry.weight": torch.ones(1, 16), "carry.bias": torch.zeros(1)}
    carrying.load_state_dict({**plain.state_dict(), **carry})
    x, z, t_emb = noise(2, 3, 16, 16), noise(2, DIM, seed=1), noise(2, 16, seed=2)
    factor = F.silu(t_emb).sum(dim=1)[:, None, None, None]
    assert torch.allclose(carrying(x, z, t_emb), plain(x, z, t_emb) + factor * x, atol=1e-5)
    with pytest.raises(ConfigError, match="out_channels must be 3 or 6 and low_res_channels 0 or 3, got 4 and 0"):
        unet(carry=True, out_channels=4)


def test_a_second_picture_is_carried_whole_until_training_says_otherwise() -> None:
    torch.manual_seed(0)
    model = DecoderUNet(parse(DecoderUNetConfig, UNET | {"carry": True, "low_res_channels": 3}))
    low = noise(2, 3, 8, 8, seed=1)
    assert torch.equal(model(noise(2, 3, 8, 8), noise(2, DIM), noise(2, 16), low_res=low), low)
    with pytest.raises(ConfigError, match="low_res_channels 0 or 3, got 3 and 4"):
        unet(carry=True, low_res_channels=4)


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


COMPILED = """
import torch
from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig

torch.set_grad_enabled(False)
settings = DecoderUNetConfig(
    channels=8, multiples=(1, 2), blocks=1, attention=(1,), head_channels=4, z_dim=5, t_dim=6, resample="residual"
)
network = DecoderUNet(settings).eval()
given = torch.randn(1, 3, 16, 16), torch.randn(1, 5), torch.randn(1, 6)
compiled = torch.compile(network, backend="eager", fullgraph=True)
print(torch.allclose(compiled(*given), network(*given), atol=1e-6))
"""


def test_a_compiler_sees_the_unet_as_one_graph() -> None:
    """In a process where nothing checks types at each call."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr[-2000:]


def test_levels_joined_by_residual_blocks_halve_and_double_inside_them() -> None:
    plain, residual = unet(), unet(resample="residual")
    x, z, t_emb = noise(2, 3, 8, 8), noise(2, DIM, seed=1), noise(2, 16, seed=2)
    assert residual(x, z, t_emb).shape == plain(x, z, t_emb).shape
    down = next(block for block in residual.down if getattr(block, "residual", None) and block.residual.resample)
    h = noise(2, 8, 8, 8, seed=3)
    with torch.no_grad():
        block = down.residual
        inner = block.conv_in(F.avg_pool2d(F.silu(block.norm_in(h)), 2))
        scale, shift = block.embed(t_emb)[:, :, None, None].chunk(2, dim=1)
        inner = block.conv_out(F.silu(block.norm_out(inner) * (1 + scale) + shift))
        assert torch.allclose(block(h, t_emb), F.avg_pool2d(h, 2) + inner, atol=1e-5)
