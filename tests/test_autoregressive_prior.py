"""The autoregressive prior: what it sees, what it learns, and that what it draws is what it says."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_rig import DIM, TOWER, autoregressive_prior, awake, generator, noise

from dalle_2 import CLIP, CLIPEncoder, Shapes
from dalle_2.config import parse
from dalle_2.data.embeddings import EmbeddingStore, build_store
from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.autoregressive_prior import (
    AutoregressivePrior,
    AutoregressivePriorConfig,
    TokenStep,
    guided,
)
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.layers.smooth_readout import SmoothReadout
from dalle_2.sampling.options import TokenOptions
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.training.ground import Ground
from dalle_2.training.progress import Silent
from dalle_2.training.recipe import AutoregressivePriorStage, RunSettings
from dalle_2.training.train_autoregressive_prior import drawn_space, train_autoregressive_prior

CONTEXT, TEXT_WIDTH = 5, 6
READS_TEXT = {"context": CONTEXT, "text_width": TEXT_WIDTH}
VALID = torch.tensor([[True] * 5, [True, True, False, False, False], [True, False, True, True, False]])


def lively(**changes: Any) -> AutoregressivePrior:
    """A prior with opinions: its logits differ by several units."""
    model = awake(autoregressive_prior(**{"depth": 2, **changes})).eval()
    with torch.no_grad():
        model.network.out.amplitudes.weight.mul_(5)
    return model


def text_of(model: AutoregressivePrior, rows: int = 3) -> dict[str, Tensor]:
    """Text states where the model reads them."""
    return {"text": noise(rows, CONTEXT, TEXT_WIDTH, seed=7), "valid": VALID[:rows]} if model.config.context else {}


def clean(rows: int, **more: Tensor) -> dict[str, Tensor]:
    return {"z_txt": noise(rows, DIM, seed=1), "z_img": noise(rows, DIM, seed=2), **more}


# The cache


@pytest.mark.parametrize("guidance", [1.0, 0.0, 3.0])
@pytest.mark.parametrize("settings", [{}, READS_TEXT, {"dim": 20, "heads": 4}])
@pytest.mark.parametrize("drawn", [TokenOptions(), TokenOptions(temperature=0.0), TokenOptions(top_k=3, top_p=0.9)])
def test_with_and_without_a_cache_the_tokens_are_the_same(
    guidance: float, settings: dict[str, Any], drawn: TokenOptions
) -> None:
    model = lively(**settings).double()
    z_txt = noise(3, model.config.dim)
    options = {"guidance": guidance, "seeds": [4, 5, 6], "drawing": drawn, **text_of(model)}
    cached, plain = (model.sample_candidates(z_txt, 2, cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, plain)
    assert not torch.equal(cached[:, 0], cached[:, 1]) or drawn.temperature == 0


def test_each_token_is_read_once_with_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = lively(), []
    block = model.network.transformer.blocks[0]
    for name in ("prefill", "step", "forward"):
        own = getattr(block, name)
        monkeypatch.setattr(block, name, lambda x, *rest, own=own: read.append(x.shape[1]) or own(x, *rest))
    for cache, wanted in ((True, [2] + [1] * (DIM - 1)), (False, list(range(2, DIM + 2)))):
        read.clear()
        model.sample(noise(3, DIM), seeds=[1, 2, 3], cache=cache)
        assert read == wanted


# What the network sees


def test_a_component_is_foretold_from_those_before_it_alone() -> None:
    model = lively(**READS_TEXT)
    network, values = model.network, noise(2, DIM, seed=3)
    prefix = network.prefix(noise(2, DIM), torch.tensor([0, 3]), noise(2, CONTEXT, TEXT_WIDTH))
    with torch.no_grad():
        logits = network(prefix, values)
        for k in range(DIM):
            moved = values.clone()
            moved[:, k] += 1
            other = network(prefix, moved)
            assert torch.equal(other[:, : k + 1], logits[:, : k + 1])
            assert not (other[:, k + 1 :] == logits[:, k + 1 :]).all(dim=-1).any()
        for p in range(prefix.shape[1]):
            moved = prefix.clone()
            moved[:, p] += 1
            assert not (network(moved, values) == logits).all(dim=-1).any()


@torch.no_grad()
def test_the_same_number_means_something_else_elsewhere() -> None:
    network, values = lively().network, torch.full((1, DIM - 1), 0.7)
    change = network.embed(values)[0] - network.embed(torch.zeros_like(values))[0]
    assert all(not torch.allclose(change[0], row) for row in change[1:])
    assert torch.equal(network.embed(values[:, :1], 4)[0, 0], network.embed(values)[0, 4])


@torch.no_grad()
def test_the_readout_can_say_everything_but_says_alike_of_neighbours() -> None:
    readout, wanted = SmoothReadout(3, 12, 99), noise(12).softmax(0)
    assert torch.equal(readout(noise(2, 3)).softmax(1), torch.full((2, 12), 1 / 12))
    logits = (wanted.log() - wanted.log().mean()).double()
    readout.amplitudes.bias.copy_(torch.linalg.lstsq(readout.basis.T.double(), logits).solution)
    assert torch.allclose(readout(torch.zeros(1, 3)).softmax(1)[0], wanted, atol=1e-6)
    kernel = SmoothReadout(3, 200, 64).basis.T @ SmoothReadout(3, 200, 64).basis  # what learning one does to another
    assert (kernel[100, [100, 101, 105, 120, 180]].diff() < 0).all()


@pytest.mark.parametrize("content", [5.0, math.nan, math.inf])
@torch.no_grad()
def test_what_stands_at_padding_has_no_influence(content: float) -> None:
    model, z_txt = lively(**READS_TEXT), noise(3, DIM)
    text = text_of(model)
    other = {**text, "text": torch.where(VALID[..., None], text["text"], content)}
    options = {"seeds": [1, 2, 3], "guidance": 2.0}
    assert torch.equal(model.sample(z_txt, **text, **options), model.sample(z_txt, **other, **options))
    losses = [float(model.loss(model.noised(clean(3, **some), generator()))["loss"]) for some in (text, other)]
    assert losses[0] == losses[1]
    seen = {**text, "text": torch.where(VALID[..., None], text["text"] + 1, 0.0)}
    assert float(model.loss(model.noised(clean(3, **seen), generator()))["loss"]) != losses[0]
    bare = {"text": text["text"]}
    assert float(model.loss(model.noised(clean(3, **bare), generator()))["loss"]) != losses[0]


# Training


def test_rows_lose_their_caption_at_the_stated_rate() -> None:
    rows = 4000
    noised = autoregressive_prior(drop=0.2).noised(clean(rows), generator())
    assert float(noised["dropped"].float().mean()) == pytest.approx(0.2, abs=4 * (0.16 / rows) ** 0.5)
    assert not autoregressive_prior(drop=0.0).noised(clean(rows), generator())["dropped"].any()
    again = autoregressive_prior(drop=0.2).noised(clean(rows), generator())
    assert torch.equal(noised["dropped"], again["dropped"])


@torch.no_grad()
def test_a_dropped_row_knows_nothing_of_its_caption() -> None:
    model = lively(**READS_TEXT)
    noised = model.noised(clean(3, **text_of(model)), generator())
    others = [{"z_txt": noised["z_txt"] + 1}, {"dot": (noised["dot"] + 1) % 4}, {"text": noised["text"] + 1},
              {"valid": noised["valid"].flip(0)}]  # fmt: skip
    for change in others:
        for dropped in (True, False):
            rows = {"dropped": torch.full((3,), dropped)}
            losses = [float(model.loss(noised | some | rows)["loss"]) for some in ({}, change)]
            assert (losses[0] == losses[1]) == dropped


def test_the_loss_is_the_cross_entropy_of_a_component() -> None:
    model = lively()
    noised = model.noised(clean(4), generator())
    noised["dropped"] = torch.tensor([False, True, False, False])
    z, dot = model.text_space.to_model(noised["z_txt"]), noised["dot"].clone()
    z[1], dot[1] = model.null_z.detach(), 4
    with torch.no_grad():
        values = model.quantiser.decode(noised["buckets"])
        shares = model.network(model.network.prefix(z, dot), values).softmax(-1)
    right = shares.gather(2, noised["buckets"][..., None])[..., 0]
    losses = model.loss(noised)
    assert losses["loss"].item() == pytest.approx(float(-right.log().mean()), rel=1e-5)
    hits = (shares.argmax(-1) == noised["buckets"]).float().mean()
    assert float(losses["accuracy"]) == pytest.approx(float(hits))


def test_a_new_prior_finds_all_buckets_equally_likely() -> None:
    model = autoregressive_prior(buckets=32)
    loss = model.loss(model.noised(clean(4), generator()))["loss"]
    assert loss.item() == pytest.approx(math.log(32), rel=1e-5)


def test_tokens_and_dot_products_are_those_of_the_embeddings() -> None:
    model, batch = autoregressive_prior(buckets=64, dot_buckets=10), clean(5000)
    batch["z_txt"] = batch["z_txt"] + batch["z_img"]
    model.fit_buckets(batch["z_txt"], batch["z_img"])
    noised = model.noised(batch, generator())
    seen = model.space.to_model(batch["z_img"])
    error = model.quantiser.decode(noised["buckets"]) - seen
    assert float(error.square().mean()) < 2e-3 * float(seen.square().mean())
    assert noised["dot"].bincount().tolist() == pytest.approx([500] * 10, abs=2)
    cosine = F.cosine_similarity(batch["z_txt"], batch["z_img"])
    assert (noised["dot"][cosine.argsort()].diff() >= 0).all()


def test_it_learns_how_components_hang_together_and_what_the_caption_says_of_them() -> None:
    """Correlated Gaussian numbers round a mean that the caption gives."""
    mixing, rows = 0.7 * noise(4, 4, seed=3), 20_000
    z_txt = noise(rows, 4, seed=4)
    z_img = noise(rows, 4, seed=5) @ mixing.T + z_txt
    space = EmbeddingSpace(dim=4, normalised=False, scale=1 / float(z_img.std()))
    spaces = {"dim": 4, "space": space, "text_space": space}
    model = autoregressive_prior(**spaces, width=32, dot_percentile=0.0, drop=0.0)
    model.fit_buckets(z_txt, z_img)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 90)
    for step in range(90):
        part = slice(128 * step, 128 * step + 128)
        optimizer.zero_grad()
        model.loss(model.noised({"z_txt": z_txt[part], "z_img": z_img[part]}, generator(step)))["loss"].backward()
        optimizer.step()
        schedule.step()
    drawn = model.eval().sample(z_txt[-3000:], seeds=range(3000)) - z_txt[-3000:]
    wanted = mixing @ mixing.T
    error, chance = (float((found - wanted).norm() / wanted.norm()) for found in (drawn.T.cov(), wanted.diag().diag()))
    assert error < 0.2 < 0.4 < chance
    assert drawn.mean(0).abs().max() < 0.1


# Sampling


def test_what_is_drawn_has_the_networks_probabilities() -> None:
    """A network that says the same everywhere: its softmax is the distribution of each component."""
    model, rows = autoregressive_prior(buckets=8, space=EmbeddingSpace(dim=DIM, normalised=False)), 3000
    with torch.no_grad():
        model.network.out.amplitudes.bias.copy_(noise(7, seed=9))
        shares = model.network.logits(torch.zeros(1, 16))[0].softmax(0)
    tokens = model.quantiser.encode(model.sample(noise(rows, DIM), seeds=range(rows)))
    assert shares.max() > 3 * shares.min()
    for column in tokens.T:
        counts = column.bincount(minlength=8)
        chi_square = float(((counts - rows * shares) ** 2 / (rows * shares)).sum())
        assert chi_square < 24.3  # 7 degrees of freedom, one in a thousand


@pytest.mark.parametrize(("percentile", "buckets"), [(50.0, [2, 3]), (0.0, [0, 1, 2, 3]), (75.0, [3]), (99.9, [3])])
def test_the_dot_product_is_drawn_evenly_from_its_upper_part(
    percentile: float, buckets: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = lively(dot_percentile=percentile), []
    uniform = (torch.arange(1000) + 0.5) / 1000
    assert model.wished_dot(uniform).bincount(minlength=4)[buckets].tolist() == [1000 // len(buckets)] * len(buckets)
    own = model.network.prefix
    monkeypatch.setattr(model.network, "prefix", lambda z, dot, text: seen.append(dot) or own(z, dot, text))
    model.sample(noise(100, DIM), seeds=range(100), guidance=2.0)
    assert seen[0][:100].unique().tolist() == buckets
    assert (seen[0][100:] == 4).all()  # unknown


def test_at_the_limits_sampling_is_greedy() -> None:
    model, z_txt = lively(), noise(3, DIM)
    model.config = model.config.model_copy(update={"dot_percentile": 75.0})  # one bucket: no luck is left
    greedy = model.sample(z_txt, drawing=TokenOptions(temperature=0.0), seeds=[1, 2, 3])
    assert torch.equal(greedy, model.sample(z_txt, drawing=TokenOptions(temperature=0.0), seeds=[4, 5, 6]))
    for limit in ({"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}):
        assert torch.equal(model.sample(z_txt, seeds=[7, 8, 9], drawing=TokenOptions(**limit)), greedy)
    assert not torch.equal(model.sample(z_txt, seeds=[7, 8, 9]), greedy)


@pytest.mark.parametrize("settings", [{}, READS_TEXT])
def test_guidance_1_is_off_and_0_forgets_the_caption(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, z_txt, rows = lively(**settings), noise(3, DIM), []
    options = {"seeds": [1, 2, 3], **text_of(model)}
    step = model.network.transformer.step
    monkeypatch.setattr(model.network.transformer, "step", lambda x, cache: rows.append(len(x)) or step(x, cache))
    plain = model.sample(z_txt, **options)
    assert torch.equal(model.sample(z_txt, guidance=1.0, **options), plain)
    assert set(rows) == {3}
    assert not torch.equal(model.sample(z_txt, guidance=4.0, **options), plain)
    assert set(rows) == {3, 6}
    for caption in (z_txt, z_txt + 1):
        without = model.sample(caption, guidance=0.0, **options)
        assert torch.equal(without, model.sample(-caption, guidance=0.0, **options))
    assert not torch.equal(without, plain)


def test_guidance_is_its_formula() -> None:
    logits = noise(6, 5)
    for weight in (0.0, 0.5, 1.0, 3.0):
        assert torch.allclose(guided(logits, 3, weight), logits[3:] + weight * (logits[:3] - logits[3:]), atol=1e-6)
    assert torch.equal(guided(logits[:3], 3, 1.0), logits[:3])


def test_candidates_begin_with_the_sample_and_hang_on_no_neighbour() -> None:
    model, z_txt = lively().double(), noise(2, DIM)
    drawn = model.sample_candidates(z_txt, 3, seeds=[5, 6])
    assert drawn.shape == (2, 3, DIM)
    assert torch.equal(drawn[:, 0], model.sample(z_txt, seeds=[5, 6]))
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.equal(drawn[1:], model.sample_candidates(z_txt[1:], 3, seeds=[6]))
    torch.manual_seed(3)
    fresh = model.sample(z_txt)
    assert not torch.equal(fresh, model.sample(z_txt))
    torch.manual_seed(3)
    assert torch.equal(fresh, model.sample(z_txt))


def test_it_draws_into_its_space_step_by_step() -> None:
    basis = tuple(map(tuple, torch.eye(DIM)[:3].tolist()))
    model, steps = lively(space=EmbeddingSpace(dim=DIM, basis=basis, mean=(0.1,) * 3, std=(0.5,) * 3)), []
    z = model.sample(noise(3, DIM), model.default_steps, seeds=[1, 2, 3], on_step=steps.append)
    assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-6)
    assert z[:, :3].abs().min() > 0 == z[:, 3:].abs().max()
    assert steps == [TokenStep(0, 3), TokenStep(1, 3), TokenStep(2, 3)]


def test_what_is_drawn_may_be_learned_from() -> None:
    model = lively()
    z = model.sample(noise(2, DIM), seeds=[1, 2])
    weight = torch.ones(DIM, requires_grad=True)
    (z * weight).square().sum().backward()
    assert weight.grad is not None
    model.loss(model.noised(clean(2), generator()))["loss"].backward()


def test_autocast_changes_nothing() -> None:
    model, z_txt = lively(), noise(2, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.sample(z_txt, seeds=[1, 2]), model.sample(z_txt, seeds=[1, 2]).float())
        inside = model.sample(z_txt, seeds=[1, 2])
    assert torch.equal(inside, model.sample(z_txt, seeds=[1, 2]))


def test_damaged_weights_are_not_hidden_behind_buckets() -> None:
    model = lively()
    with torch.no_grad():
        model.network.embed_dot.weight[3] = math.nan  # which some rows ask for, and some don't
    z = model.sample(noise(50, DIM), seeds=range(50))
    assert z.isnan().any(dim=1).any()
    assert (z.isnan().any(dim=1) == z.isnan().all(dim=1)).all()
    assert z.isfinite().all(dim=1).any()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_stored_prior_draws_the_same(suffix: str, tmp_path: Path) -> None:
    model, batch = lively(**READS_TEXT, guidance=2.0, top_p=0.9), clean(500)
    model.fit_buckets(batch["z_txt"], batch["z_img"])
    save_model(model, tmp_path / f"prior.{suffix}")
    again = load_model(tmp_path / f"prior.{suffix}", "autoregressive_prior")
    assert isinstance(again, AutoregressivePrior)
    options = {"seeds": [1, 2, 3], **text_of(model)}
    assert torch.equal(again.sample(noise(3, DIM), **options), model.sample(noise(3, DIM), **options))
    save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    half = load_model(tmp_path / "half.safetensors")
    assert half.sample(noise(3, DIM), **options).isfinite().all()


# The stage


def cone(rows: int = 600, dim: int = 10) -> np.ndarray:
    """Embeddings round a common direction, which differ widely in three others and little in the rest."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    widths = np.array([0.3, 1.5, 0.8, *[0.02] * (dim - 3)])
    return rng.normal(size=(rows, dim)) * widths @ turn + 4 * turn[3]


def test_the_widest_direction_comes_first_and_the_mean_is_kept() -> None:
    rows = cone()
    space = drawn_space(rows, normalised=False, directions=5)
    components = torch.from_numpy(rows) @ torch.tensor(space.basis, dtype=torch.float64).T
    assert (components.var(dim=0).diff() < 0).all()
    assert torch.allclose(space.to_model(torch.from_numpy(rows)).std(dim=0), torch.ones(5).double(), atol=1e-2)
    again = space.from_model(space.to_model(torch.from_numpy(rows))).numpy()
    assert np.square(again - rows).mean() < 1e-3


@pytest.mark.parametrize(("explained", "width"), [(0.5, 2), (0.9, 3), (0.99, 4), (None, 6)])
def test_as_many_directions_are_kept_as_explain_the_variance(explained: float | None, width: int) -> None:
    space = drawn_space(cone(), normalised=False, directions=6, explained=explained)
    assert space.width == width  # one of them is the cone's own, without which the others explain nothing


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    z_img = F.normalize(torch.from_numpy(cone()).float(), dim=1)
    z_txt = F.normalize(z_img + 0.2 * noise(*z_img.shape), dim=1)
    return build_store(
        tmp_path_factory.mktemp("embeddings"), len(z_img), lambda rows: (z_img[list(rows)], z_txt[list(rows)]),
        dim=10, encoder_id="clip", data_id="cone",
    )  # fmt: skip


def stage(**changes: Any) -> AutoregressivePriorStage:
    config = {"width": 16, "depth": 1, "heads": 2, "buckets": 16, "dot_buckets": 10}
    run = RunSettings(images=256, batch=64, ema_halflife=50.0, dtype="fp32")
    return AutoregressivePriorStage.model_validate({"config": config, "run": run, **changes})


def ground(store: EmbeddingStore) -> Ground:
    """A ground of embeddings, which no CLIP is asked for and no caption goes with."""
    clip = CLIP.from_config({"vision": TOWER | {"image_size": 8, "patch": 4}, "text": TOWER, "embed_dim": 10})
    encoder = CLIPEncoder(clip, tokenizer=Tokenizer.train(["a red circle"], 280, 32))
    return Ground(encoder, Shapes(8, 10), store, None, 0, Silent())


def test_the_stage_trains_a_prior_on_embeddings(store: EmbeddingStore, tmp_path: Path) -> None:
    path = train_autoregressive_prior(stage(directions=4), ground(store), tmp_path / "prior_ar")
    assert path == tmp_path / "prior_ar" / "prior_ar.safetensors"
    model = load_model(path)
    assert isinstance(model, AutoregressivePrior)
    assert (model.components, model.config.dim) == (4, 10)
    z_img, z_txt = store.batch(slice(None))
    noised = model.noised({"z_img": z_img, "z_txt": z_txt}, generator())
    assert noised["dot"].bincount().tolist() == pytest.approx([60] * 10, abs=1)
    assert all(column.unique().tolist() == list(range(16)) for column in noised["buckets"].T)
    assert model.loss(noised)["loss"].item() < math.log(16)
    drawn = model.sample(z_txt[:50], seeds=range(50))
    assert torch.allclose(drawn.norm(dim=1), torch.ones(50), atol=1e-5)
    assert float(F.cosine_similarity(drawn, z_img[:50]).mean()) > 0.8


def test_more_directions_than_rows_are_none(store: EmbeddingStore, tmp_path: Path) -> None:
    few = build_store(tmp_path / "few", 6, lambda rows: store.batch(list(rows)), dim=10, encoder_id="c", data_id="d")
    path = train_autoregressive_prior(stage(), ground(few), tmp_path)
    model = load_model(path)
    assert isinstance(model, AutoregressivePrior)
    assert model.components <= 6
    assert model.sample(noise(2, 10), seeds=[1, 2]).isfinite().all()


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drawing": TokenOptions(top_p=0.0)}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"drawing": TokenOptions(top_p=1.5)}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"drawing": TokenOptions(top_k=0)}, "top_k must be at least 1, got 0"),
        ({"drawing": TokenOptions(temperature=-1.0)}, "temperature must be a number from 0 up, got -1.0"),
        ({"guidance": -0.5}, "guidance must be a number from 0 up, got -0.5; 1 is off"),
        ({"guidance": math.inf}, "guidance must be a number from 0 up, got inf"),
        ({"t": 25}, "takes one step a component, here 8, got 25: leave it out"),
        ({"seeds": [1]}, "got 1 seeds for 2 rows: give one a row"),
        ({"text": noise(2, CONTEXT, TEXT_WIDTH)}, "this prior reads no text states, only embeddings: leave text out"),
        ({"valid": VALID[:2]}, "valid must say of each text state whether it counts"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        autoregressive_prior().sample(noise(2, DIM), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"reads text states of shape \(2, 5, 6\), got none"),
        ({"text": noise(2, CONTEXT - 1, TEXT_WIDTH)}, r"reads text states of shape \(2, 5, 6\), got \(2, 4, 6\)"),
        ({"text": noise(2, CONTEXT, TEXT_WIDTH), "valid": VALID[:2, :3]}, r"whether it counts, got shape \(2, 3\)"),
    ],
)
def test_text_states_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        autoregressive_prior(**READS_TEXT).sample(noise(2, DIM), **options)


def test_embeddings_that_can_not_be_are_refused() -> None:
    model, broken = autoregressive_prior(), noise(2, DIM)
    broken[1, 2] = math.nan
    with pytest.raises(UsageError, match="z_txt holds numbers that are not finite: check the CLIP that made them"):
        model.sample(broken)
    with pytest.raises(UsageError, match=r"z_txt must have shape \(rows, 8\), got \(2, 9\)"):
        model.sample(noise(2, 9))
    for name in ("z_txt", "z_img"):
        with pytest.raises(UsageError, match=f"{name} holds numbers that are not finite"):
            model.noised(clean(2) | {name: broken}, generator())
    with pytest.raises(UsageError, match="the batch lacks z_img; it holds z_txt"):
        model.noised({"z_txt": noise(2, DIM)}, generator())
    with pytest.raises(UsageError, match="the batch lacks text; it holds z_img, z_txt"):
        autoregressive_prior(**READS_TEXT).noised(clean(2), generator())
    with pytest.raises(UsageError, match="can't be fitted to numbers that are not finite"):
        model.fit_buckets(noise(2, DIM), broken)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 16, "heads": 3}, "width 16 must be a multiple of heads 3"),
        ({"dot_percentile": 100}, "dot_percentile"),
        ({"buckets": 1}, "buckets"),
        ({"top_p": 0}, "top_p"),
        ({"bucket": 1}, "unknown key 'bucket'; did you mean 'buckets'"),
    ],
)
def test_settings_that_can_not_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(AutoregressivePriorConfig, values)
