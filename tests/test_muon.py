"""Muon against the polar factor, AdamW against torch's own, and what a recipe hands to which."""

import copy

import pytest
import torch
from torch import nn
from training_rig import MODELS, clip

from dalle_2.training.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal
from dalle_2.training.recipe import RunSettings
from dalle_2.training.stage import hidden_weights, optimiser


def by_definition(g: torch.Tensor) -> torch.Tensor:
    """Newton and Schulz's iteration as the method's authors write it, in float64."""
    a, b, c = COEFFICIENTS
    x = g.double() / (g.double().norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(24, 24), (16, 144), (144, 16), (1, 9)])
def test_the_iteration_is_the_one_it_abbreviates(shape: tuple[int, int]) -> None:
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for ours, one in zip(orthogonal(g), g, strict=True):
        torch.testing.assert_close(ours.double(), by_definition(one), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(48, 48), (16, 144), (144, 16)])
def test_bfloat16_rounds_it_and_no_more(shape: tuple[int, int]) -> None:
    """Also a gradient of few strong directions, whose products a smaller dtype would lose."""
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, shape[1])
    rounded = orthogonal(g, torch.bfloat16)
    assert rounded.dtype == torch.float32
    for ours, one in zip(rounded, g, strict=True):
        whole = by_definition(one).float()
        assert float((ours - whole).norm() / whole.norm()) < 0.05


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_matrices_are_made_orthogonal_in_the_dtype_of_the_run(dtype: str, expected: torch.dtype) -> None:
    optimizer = optimiser(MODELS["prior"](), RunSettings(images=1, optimizer="muon", dtype=dtype))
    assert isinstance(optimizer, Muon)
    assert optimizer.dtype == expected


def test_it_gives_nearly_the_polar_factor() -> None:
    g = torch.randn(1, 32, 200, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(g)[0])
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(g[0], full_matrices=False)
    cosine = torch.cosine_similarity(orthogonal(g)[0].flatten(), (u @ v).flatten(), dim=0)
    assert float(cosine) > 0.98


def test_a_gradient_of_nothing_moves_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([{"params": [weight], "orthogonal": True}], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(weight.detach(), torch.ones(4, 4))


def test_a_step_has_the_size_of_adamw() -> None:
    """Whatever the gradient's size, the root mean square of a step is about 0.2 times the learning rate."""
    for size in (1e-6, 1e6):
        weight = nn.Parameter(torch.zeros(64, 3, 8, 8))
        weight.grad = size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        Muon([{"params": [weight], "orthogonal": True}], lr=0.5, weight_decay=0.1).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1, rel=0.2)


def test_the_other_groups_step_as_torchs_adamw() -> None:
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    mine = Muon([{"params": list(ours.parameters())}], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    peer = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for step in range(5):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, mine), (theirs, peer)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_in_one_group_and_gains_do_not_decay(kind: str) -> None:
    model = MODELS[kind]()
    for name in ("muon", "adamw"):
        groups = optimiser(model, RunSettings(images=1, optimizer=name, weight_decay=0.3)).param_groups
        members = [id(p) for group in groups for p in group["params"]]
        assert sorted(members) == sorted(id(p) for p in model.parameters())
        assert all(p.ndim > 1 or group["weight_decay"] == 0 for group in groups for p in group["params"])
        assert not any(group["orthogonal"] for group in groups) or name == "muon"


def test_muon_takes_hidden_layers_only() -> None:
    model = clip(
        vision={"width": 64, "depth": 1, "heads": 2, "image_size": 8, "patch": 4},
        text={"width": 64, "depth": 1, "heads": 2, "vocab_size": 3000, "context_length": 40}, phrases=4096,
    )  # fmt: skip
    chosen = {id(p) for p in hidden_weights(model)}
    names = {name for name, p in model.named_parameters() if id(p) in chosen}
    assert "text.transformer.blocks.0.mlp.0.weight" in names
    assert not any("embedding" in name or "positions" in name or name == "side.phrases.weight" for name in names)


def test_a_resumed_optimiser_goes_on_as_an_uninterrupted_one() -> None:
    def step(weight: nn.Parameter, optimizer: Muon, seed: int) -> None:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    whole = nn.Parameter(torch.ones(32, 40))
    steady = Muon([{"params": [whole], "orthogonal": True}], lr=0.1)
    step(whole, steady, 1)
    part = nn.Parameter(whole.detach().clone())
    resumed = Muon([{"params": [part], "orthogonal": True}], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(steady.state_dict()))
    for weight, optimizer in ((whole, steady), (part, resumed)):
        step(weight, optimizer, 2)
    assert torch.equal(whole, part)
