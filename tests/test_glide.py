"""GLIDE's files: names, shapes and counts as published, what the numbers mean, and what is refused.

No public class of diffusers or transformers is GLIDE, so that no parity is claimed: the networks are compared with what
`glide_rig.py` reckons from the published names.
"""

import gzip
import json
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import glide_rig as rig
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

import dalle_2
from dalle_2.cli.main import app
from dalle_2.config import parse
from dalle_2.errors import CheckpointError, UsageError
from dalle_2.inference.generate import generations
from dalle_2.inference.generation import GenerationSettings
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.models.decoder import Known
from dalle_2.models.glide import Glide, GlideConfig, GlideModel, resized, rounded
from dalle_2.models.masks import known_channels
from dalle_2.pipelines import glide
from dalle_2.pipelines.glide import PUBLISHED, load_glide, pairs_of
from dalle_2.sampling.grid import FAST27, grid
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.text.glide_tokenizer import GlideTokenizer
from dalle_2.weights.layout import expected, to_theirs

FILES = {"decoder": "base.pt", "upsampler": "upsample.pt"} | {
    "decoder-inpaint": "base_inpaint.pt", "upsampler-inpaint": "upsample_inpaint.pt",
}  # fmt: skip
COUNTS = {
    "decoder": 385_030_726, "upsampler": 398_361_286,
    "decoder-inpaint": 385_037_638, "upsampler-inpaint": 398_368_198,
}  # fmt: skip
PROMPTS = ["a red fox", "an ox"]


def tiny(role: str) -> dict[str, Any]:
    """The published settings at a size for tests: 8 px, made 16."""
    config, of = PUBLISHED[role], rig.TINY
    small = {
        "channels": of.width, "t_dim": 4 * of.width, "head_channels": of.head, "groups": of.groups, "multiples": (1, 2),
        "blocks": of.blocks, "attention": of.attends, "context_dim": of.text, "text_dim": of.text,
    }  # fmt: skip
    text = {
        "width": of.text, "depth": of.text_depth, "heads": of.text_heads, "vocab_size": of.vocabulary,
        "context_length": of.context, "pad_id": of.vocabulary - 1, "eos_id": of.vocabulary - 1,
    }  # fmt: skip
    sizes = {"image_size": 16, "low_res_size": 8} if config.get("low_res_size") else {"image_size": 8}
    unet, caption = config["unet"] | small, config["caption"] | text
    return {**config, **sizes, "sinusoid": of.width, "unet": unet, "caption": caption, "steps": 3}


TINY = {role: tiny(role) for role in FILES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("glide")
    rig.write(home, *FILES.values())
    return home


@pytest.fixture
def ours(folder: Path) -> Glide:
    return load_glide(folder, device="cpu", configs=TINY)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The networks


@pytest.mark.parametrize("role", FILES)
def test_published_networks_have_the_published_tensors(role: str) -> None:
    config = parse(GlideConfig, PUBLISHED[role])
    with torch.device("meta"):
        model = GlideModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[role]
    own = {name: value.shape for name, value in model.state_dict().items()}
    of = rig.LARGE if role.startswith("upsampler") else rig.BASE
    pairs = [pair for pair in pairs_of(config) if pair.ours in own]  # where the width changes there is a skip
    assert {pair.ours for pair in pairs} == own.keys()
    assert expected(pairs, own) == rig.shapes(of, rig.SIZES[FILES[role]])


@pytest.mark.parametrize("role", FILES)
@torch.no_grad()
def test_the_numbers_mean_what_they_mean_there(ours: Glide, folder: Path, role: str) -> None:
    model, size = ours.part(role), TINY[role]["image_size"]
    theirs = rig.Network(torch.load(folder / FILES[role], weights_only=True), rig.TINY)
    x, t, tokens = noise(2, 3, size, size), torch.tensor([3, 700]), ours.tokenizer(["a red fox", ""])
    stacked, given = [x], {}
    if model.fills_holes:
        hole = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(1)) < 0.5
        given["known"] = Known(noise(2, 3, size, size, seed=2), hole)
        stacked.append(known_channels(given["known"].picture, hole))
    if model.config.low_res_size:
        given["low_res"] = noise(2, 3, 8, 8, seed=3).clamp(-1, 1)
        levels = ((given["low_res"] + 1) * 127.5).round() / 127.5 - 1
        stacked.append(F.interpolate(levels, (size, size), mode="bilinear", align_corners=False))
    wanted = theirs(torch.cat(stacked, dim=1), t, tokens)
    other = theirs(torch.cat(stacked, dim=1), t, tokens.flip(0))
    assert float((other - wanted).abs().max() / wanted.abs().max()) > 0.01  # the words show
    made = model(x, model.time(t), tokens, **given)
    assert float((made - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_our_network_goes_there_and_back(tmp_path: Path) -> None:
    config = parse(GlideConfig, TINY["upsampler-inpaint"])
    model = GlideModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    torch.save(to_theirs(pairs_of(config), model.state_dict()), tmp_path / "upsample_inpaint.pt")
    again = glide.load_glide_model(tmp_path / "upsample_inpaint.pt", TINY["upsampler-inpaint"])
    save_model(again, tmp_path / "ours.safetensors")
    own = load_model(tmp_path / "ours.safetensors", "glide")
    x, tokens, t = noise(1, 3, 16, 16), torch.zeros(1, 12, dtype=torch.long), torch.tensor([5])
    said = [one(x, one.time(t), tokens, low_res=noise(1, 3, 8, 8)) for one in (model, again, own)]
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


# The vocabulary


def test_a_caption_becomes_lower_case_bytes_and_padding(ours: Glide) -> None:
    tokenizer = ours.tokenizer
    ids = {token: n for n, token in enumerate([*rig.ALPHABET, "an", "Ġr", "Ġre", "Ġred"])}
    assert tokenizer(["An red"]).tolist() == [[ids["an"], ids["Ġred"], *[tokenizer.vocab_size - 1] * 10]]
    assert tokenizer(["xyzxyzxyzxyzxyz"]).shape == (1, 12)  # cut, with no end of its own
    assert tokenizer.truncated("xyzxyzxyzxyzx")
    assert not tokenizer.truncated("xyzxyzxyzxyz")
    assert tokenizer(["<|endoftext|>"])[0, 0] == ids["<"]


def test_the_vocabulary_agrees_with_gpt_2s_tokenizer(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = json.loads(gzip.decompress((folder / "encoder.json.gz").read_bytes()))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_bytes(gzip.decompress((folder / "vocab.bpe.gz").read_bytes()))
    peer = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    for text in ("an old man's hat, 12 red x's!", "  two  spaces ", "ünï — ☂"):
        wanted = peer(text.lower())["input_ids"][:128]
        made = GlideTokenizer.from_glide_folder(folder)([text])[0].tolist()
        assert made[: len(wanted)] == wanted
        assert set(made[len(wanted) :]) == {len(vocabulary) - 1}


def test_an_unpacked_vocabulary_does_as_well(folder: Path, tmp_path: Path) -> None:
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    plain, packed = (GlideTokenizer.from_glide_folder(home)(PROMPTS) for home in (tmp_path, folder))
    assert torch.equal(plain, packed)


# Sampling


def test_fast27_visits_the_published_timesteps() -> None:
    table = NoiseScheduler(1000, schedule="linear")
    assert grid(table, 27, "fast27") == tuple(reversed(FAST27))
    sections = zip(range(0, 1000, 200), (10, 10, 3, 2, 2), strict=True)
    spaced = [start + round(199 * k / (count - 1)) for start, count in sections for k in range(count)]
    assert (*tuple(spaced[:-1]), 997) == FAST27
    for steps in (2, 5, 100, 1000):
        rows = grid(table, steps, "fast27")
        assert len(rows) == steps
        assert (rows[0], rows[-1]) == (997, 0)
    assert grid(table, 1, "fast27") == (999,)


def test_a_picture_is_drawn_as_published(ours: Glide, folder: Path) -> None:
    """100 steps of DDPM with guidance 3, then fast27 of DDIM from a little less noise, by hand."""
    plan = load_glide(folder, device="cpu", configs=TINY).settings()
    assert [(name, run.steps, run.guidance, run.sampler) for name, run in plan.items()] == [
        ("decoder", 3, 3.0, "ddpm"), ("upsampler-16", 3, 1.0, "ddim"),
    ]  # fmt: skip
    assert [PUBLISHED[role].get("steps", 100) for role in FILES] == [100, 27, 100, 27]

    seen: dict[str, list[Any]] = {}
    (made,) = ours.generate(PROMPTS[:1], seeds=4, on_step=lambda name, step: seen.setdefault(name, []).append(step))
    tokens, empty = ours.tokenizer(PROMPTS[:1]), ours.tokenizer([""])
    small = seen["decoder"][-1].x_s
    theirs = {name: rig.Network(torch.load(folder / name, weights_only=True), rig.TINY) for name in FILES.values()}

    for step in seen["decoder"]:
        abar = ours.part("decoder").noise_scheduler.alpha_bar[int(step.t)]
        t = torch.tensor([int(step.t)])
        own, none = (theirs["base.pt"](step.x_t, t, words)[:, :3] for words in (tokens, empty))
        eps = none + 3 * (own - none)
        x_0 = ((step.x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
        assert torch.allclose(step.x_0, x_0.float(), atol=2e-4)

    table = ours.part("upsampler").noise_scheduler.alpha_bar
    enlarged = F.interpolate(rounded(small), (16, 16), mode="bilinear", align_corners=False)
    x = seen["upsampler-16"][0].x_t
    for step in seen["upsampler-16"]:
        now, then = table[int(step.t)], table[int(step.s)] if step.s >= 0 else torch.tensor(1.0)
        eps = theirs["upsample.pt"](torch.cat([x, enlarged], dim=1), torch.tensor([int(step.t)]), tokens)[:, :3]
        x_0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
        eps = (x - math.sqrt(now) * x_0) / math.sqrt(1 - now)
        x = (math.sqrt(then) * x_0 + math.sqrt(1 - then) * eps).float()
    assert torch.allclose(made, x[0], atol=1e-3)


@torch.no_grad()
def test_guidance_leads_away_from_a_negative_caption(ours: Glide, folder: Path) -> None:
    model, theirs = ours.part("decoder"), rig.Network(torch.load(folder / "base.pt", weights_only=True), rig.TINY)
    x, t = 0.2 * noise(2, 3, 8, 8), torch.tensor([300, 300])
    tokens, avoided = ours.tokenizer(PROMPTS), ours.tokenizer(["red", "old"])
    own, against = (theirs(x, t, words)[:, :3] for words in (tokens, avoided))
    abar = float(model.noise_scheduler.alpha_bar[300])
    wanted = (x - math.sqrt(1 - abar) * (against + 3 * (own - against))) / math.sqrt(abar)
    made = model.denoiser(tokens, negative=avoided)(x, t).x_0
    assert torch.allclose(made, wanted.clamp(-1, 1), atol=1e-4)
    assert float((wanted.abs() < 1).float().mean()) > 0.5
    assert not torch.allclose(made, model.denoiser(tokens)(x, t).x_0, atol=1e-3)
    picture = ours.generate(PROMPTS, seeds=1, negative=["red", "old"])
    assert not torch.equal(picture, ours.generate(PROMPTS, seeds=1))


def test_less_noise_starts_the_upsampler(ours: Glide) -> None:
    from dalle_2.sampling.noise import PictureNoise

    steps: list[Any] = []
    ours.generate(PROMPTS[:1], seeds=4, on_step=lambda name, step: steps.append(step))
    started = [step.x_t for step in steps if step.index == 0]
    wanted = [PictureNoise([4], f"glide-{size}").normal((1, 3, size, size)) for size in (8, 16)]
    assert torch.equal(started[0], wanted[0])
    assert torch.allclose(started[1], 0.997 * wanted[1])


def test_a_picture_hangs_on_its_seed_and_not_on_its_batch(ours: Glide) -> None:
    both = ours.generate(PROMPTS, seeds=[3, 8])
    assert torch.allclose(ours.generate(PROMPTS[1:], seeds=8), both[1:], atol=1e-4)
    assert torch.allclose(ours.generate(PROMPTS, seeds=[3, 8], micro_batch=1), both, atol=1e-4)
    assert ours.generate(PROMPTS, seeds=1, last_stage="decoder").shape == (2, 3, 8, 8)


def test_holes_are_filled_and_the_rest_stays(ours: Glide) -> None:
    picture = noise(2, 3, 16, 16).clamp(-1, 1)
    hole = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    hole[:, :, 5:12, 3:9] = True
    made = ours.generate(PROMPTS, seeds=1, known=Known(picture, hole))
    assert torch.equal(torch.where(hole, 0, made), torch.where(hole, 0, picture))
    assert not torch.allclose(made, picture, atol=0.1)
    assert [run.sampler for run in ours.settings(painting=True).values()] == ["ddpm", "ddpm"]
    small = resized(Known(picture, hole), 8, torch.device("cpu"))
    assert small.hole[0, 0].nonzero().amin(0).tolist() == [2, 1]
    assert small.hole[0, 0].nonzero().amax(0).tolist() == [5, 4]
    with pytest.raises(UsageError, match="2 pictures of 16 px to fill"):
        ours.generate(PROMPTS, known=Known(picture[..., :8, :8], hole[..., :8, :8]))


def test_a_network_that_fills_holes_draws_without_any(folder: Path, tmp_path: Path) -> None:
    rig.write(tmp_path, "base_inpaint.pt")
    alone = load_glide(tmp_path, device="cpu", configs=TINY)
    assert alone.generate(PROMPTS, seeds=1).shape == (2, 3, 8, 8)
    rig.write(tmp_path / "plain", "base.pt", "upsample.pt")
    plain = load_glide(tmp_path / "plain", device="cpu", configs=TINY)
    with pytest.raises(UsageError, match="no networks that fill holes"):
        plain.generate(PROMPTS, known=Known(noise(2, 3, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.bool)))


# The command


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, workdir: Path) -> Any:
    monkeypatch.setattr("dalle_2.inference.generate.load_glide", partial(load_glide, configs=TINY))
    return lambda *given: CliRunner().invoke(app, ["generate", "a red fox", "--pipeline", str(folder), *given])


def test_the_command_draws_pictures(command: Any, workdir: Path) -> None:
    made = command("--n", "2", "--seed", "5", "--upsampler-steps", "2", "--guidance", "2", "--out", "here", "--json")
    assert made.exit_code == 0, made.output
    lines = [json.loads(line) for line in made.stdout.splitlines() if line.startswith("{")]
    assert [line["seed"] for line in lines] == [5, 6]
    assert lines[0]["steps"] == {"decoder": 3, "upsampler-16": 2}
    assert lines[0]["guidance"]["decoder"] == 2.0
    assert Image.open(lines[0]["file"]).size == (16, 16)
    small = command("--size", "8", "--out", "small")
    assert small.exit_code == 0
    assert Image.open(next((workdir / "small").iterdir())).size == (8, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--candidates", "2"], "takes no candidates"), (["--no-prior"], "takes no use_prior"),
        (["--prior-steps", "3"], "no stage 'prior'"), (["--best-of", "2"], "no CLIP to choose"),
        (["--size", "9"], "8 or 16 px"), (["--sampler", "ddpm", "--eta", "0.5"], "takes no eta"),
        (["--guidance", "1", "--negative", "red"], "without guidance"),
    ],
)  # fmt: skip
def test_the_command_refuses_what_glide_has_not(command: Any, given: list[str], said: str) -> None:
    refused = command(*given)
    assert isinstance(refused.exception, UsageError) or refused.exit_code == 2
    assert said in str(refused.exception) + refused.output


def test_a_sampler_for_every_stage_leaves_the_prior_out(ours: Glide) -> None:
    every = dict.fromkeys(("prior", "decoder", "upsampler"), "ddim")
    (made,) = generations(ours, PROMPTS[:1], 1, GenerationSettings(samplers=every))
    assert made.metadata["sampler"] == {"decoder": "ddim", "upsampler-16": "ddim"}


# What is refused


def test_it_is_no_unclip(folder: Path) -> None:
    with pytest.raises(UsageError, match="holds GLIDE, which draws from captions alone"):
        dalle_2.load(folder)


def test_a_pickle_is_read_without_running_it(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    rig.write(tmp_path)
    (tmp_path / "base.pt").write_bytes(pickle.dumps({"out.2.bias": Evil()}))
    with pytest.raises(CheckpointError, match="could run code"):
        load_glide(tmp_path, configs=TINY, device="cpu").part("decoder")
    assert not witness.exists()


def test_all_wrong_tensors_are_named_by_their_own_names(tmp_path: Path) -> None:
    rig.write(tmp_path, "base.pt")
    tensors = torch.load(tmp_path / "base.pt", weights_only=True)
    del tensors["out.2.bias"]
    torch.save(tensors | {"surplus": torch.ones(1), "final_ln.weight": torch.ones(2)}, tmp_path / "base.pt")
    with pytest.raises(CheckpointError) as caught:
        load_glide(tmp_path, configs=TINY, device="cpu").part("decoder")
    for part in ("missing (1): out.2.bias", "not known here (1): surplus", "final_ln.weight is (2,) instead of (24,)"):
        assert part in str(caught.value)


def test_what_a_folder_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected base.pt or base_inpaint.pt"):
        load_glide(tmp_path)
    rig.write(tmp_path, "base.pt")
    with pytest.raises(CheckpointError, match="has 261 tokens, and GLIDE knows 50257"):
        load_glide(tmp_path)
    (tmp_path / "vocab.bpe.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(CheckpointError, match="vocab.bpe.gz can't be read"):
        load_glide(tmp_path)
    (tmp_path / "vocab.bpe.gz").unlink()
    with pytest.raises(CheckpointError, match="lacks vocab.bpe.gz: copy"):
        load_glide(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unet": {"out_channels": 3}}, "unet.out_channels must be 6"),
        ({"unet": {"known_channels": 3}}, "unet.known_channels must be 0, or 4"),
        ({"low_res_size": 8}, "unet.low_res_channels must be 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    config = TINY["decoder"]
    unet = config["unet"] | changes.pop("unet", {})
    with pytest.raises(UsageError, match=said):
        parse(GlideConfig, {**config, **changes, "unet": unet})
