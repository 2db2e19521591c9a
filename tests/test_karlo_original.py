"""Karlo's own files, made from the layout of diffusers by what is known of them, against that layout."""

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import karlo_rig
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dalle_2
from dalle_2 import DALLe2
from dalle_2.cli.main import main
from dalle_2.errors import CheckpointError
from dalle_2.models.placement import Placement
from dalle_2.pipelines.karlo_original import load_karlo_original

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

BLOCKS, LEVELS = 2, 2
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("karlo")
    karlo_rig.build(home)
    return home


@pytest.fixture(scope="module")
def original(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files, and the CLIP in a folder beside them."""
    home = tmp_path_factory.mktemp("original")
    parts = {
        name: load_file(folder / name / "diffusion_pytorch_model.safetensors")
        for name in ("prior", "decoder", "text_proj", "super_res_first", "super_res_last")
    }
    torch.save((parts["prior"].pop("clip_mean")[0], parts["prior"].pop("clip_std")[0]), home / "ViT-L-14_stats.th")
    prior = {f"model.{name}": x for name, x in prior_there(parts["prior"]).items()}
    torch.save({"state_dict": prior}, home / "prior-ckpt-step=01000000-of-01000000.ckpt")
    decoder = unet_there(parts["decoder"], attends=(1,), middle=True) | text_there(parts["text_proj"])
    torch.save(
        {"state_dict": {f"model.{name}": x for name, x in decoder.items()}},
        home / "decoder-ckpt-step=01000000-of-01000000.ckpt",
    )
    both = {
        f"{prefix}.{name}": x
        for prefix, part in (("model_first_steps", "super_res_first"), ("model_last_step", "super_res_last"))
        for name, x in unet_there(parts[part], attends=(), middle=False).items()
    }
    torch.save({"state_dict": both}, home / "improved-sr-ckpt-step=1.2M.ckpt")
    clip_there(folder, home / "clip")
    return home


def clip_there(folder: Path, home: Path) -> None:
    """Both towers in one model."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    configs = (CLIPTextConfig, "text_encoder"), (CLIPVisionConfig, "image_encoder")
    text, vision = (kind.from_pretrained(folder / name).to_dict() for kind, name in configs)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=karlo_rig.DIM))
    tensors = {k: v for _, name in configs for k, v in load_file(folder / name / "model.safetensors").items()}
    model.load_state_dict(tensors, strict=False)
    model.save_pretrained(home)
    for path in (folder / "tokenizer").iterdir():
        shutil.copy(path, home)


def by_heads(parts: list[Tensor], head: int) -> Tensor:
    """The rows of the first head of each part, then those of the second, and so on."""
    rows = range(0, len(parts[0]), head)
    return torch.cat([part[start : start + head] for start in rows for part in parts])


def prior_there(tensors: Tensors) -> Tensors:
    plain = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "proj_in": "clip_img_proj", "embedding_proj": "text_emb_proj", "encoder_hidden_states_proj": "text_enc_proj",
        "prd_embedding": "prd_emb", "positional_embedding": "positional_embedding", "norm_out": "final_ln",
        "proj_to_clip_embeddings": "out_proj",
    }  # fmt: skip
    inside = {
        "norm1": "ln_1", "norm3": "ln_2", "attn1.to_out.0": "attn.c_proj", "ff.net.0.proj": "mlp.c_fc",
        "ff.net.2": "mlp.c_proj",
    }  # fmt: skip
    made = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.*)", stem)
        if name in plain:
            made[plain[name]] = tensor
        elif stem in plain:
            made[f"{plain[stem]}.{kind}"] = tensor
        elif block and block[2] in inside:
            made[f"transformer.resblocks.{block[1]}.{inside[block[2]]}.{kind}"] = tensor
        elif block and block[2] == "attn1.to_q":
            parts = [tensors[f"transformer_blocks.{block[1]}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            made[f"transformer.resblocks.{block[1]}.attn.c_qkv.{kind}"] = by_heads(parts, 8)
    return made


def text_there(tensors: Tensors) -> Tensors:
    names = {
        "embedding_proj": "text_feat_proj", "clip_image_embeddings_project_to_time_embeddings": "clip_emb",
        "clip_extra_context_tokens_proj": "clip_tok_proj", "encoder_hidden_states_proj": "text_seq_proj.0",
        "text_encoder_hidden_states_norm": "text_seq_proj.1",
    }  # fmt: skip
    made = {f"{names[here]}.{kind}": tensors[f"{here}.{kind}"] for here in names for kind in ("weight", "bias")}
    return made | {"cf_param": tensors["learned_classifier_free_guidance_embeddings"]}


def unet_there(tensors: Tensors, attends: tuple[int, ...], middle: bool) -> Tensors:
    """Levels are named as in diffusers: down from the finest, up from the coarsest."""
    made: Tensors = {}

    def put(here: str, there: str) -> None:
        made.update({f"{there}.{kind}": tensors[f"{here}.{kind}"] for kind in ("weight", "bias")})

    def residual(here: str, there: str) -> None:
        for name, new in (
            ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
        ):  # fmt: skip
            put(f"{here}.{name}", f"{there}.{new}")
        if f"{here}.conv_shortcut.weight" in tensors:
            put(f"{here}.conv_shortcut", f"{there}.skip_connection")

    def attention(here: str, there: str) -> None:
        put(f"{here}.group_norm", f"{there}.norm")
        for new, names in (("qkv", ("to_q", "to_k", "to_v")), ("encoder_kv", ("add_k_proj", "add_v_proj"))):
            for kind in ("weight", "bias"):
                whole = by_heads([tensors[f"{here}.{name}.{kind}"] for name in names], 16)
                made[f"{there}.{new}.{kind}"] = whole[:, :, None] if kind == "weight" else whole
        put(f"{here}.to_out.0", f"{there}.proj_out")
        made[f"{there}.proj_out.weight"] = made[f"{there}.proj_out.weight"][:, :, None]

    put("time_embedding.linear_1", "time_embed.0")
    put("time_embedding.linear_2", "time_embed.2")
    put("conv_in", "input_blocks.0.0")
    put("conv_norm_out", "out.0")
    put("conv_out", "out.2")
    number = 1
    for level in range(LEVELS):
        for n in range(BLOCKS):
            residual(f"down_blocks.{level}.resnets.{n}", f"input_blocks.{number}.0")
            if level in attends:
                attention(f"down_blocks.{level}.attentions.{n}", f"input_blocks.{number}.1")
            number += 1
        if level < LEVELS - 1:
            residual(f"down_blocks.{level}.downsamplers.0", f"input_blocks.{number}.0")
            number += 1
    residual("mid_block.resnets.0", "middle_block.0")
    if middle:
        attention("mid_block.attentions.0", "middle_block.1")
    residual("mid_block.resnets.1", f"middle_block.{2 if middle else 1}")
    number = 0
    for above in range(LEVELS):
        level = LEVELS - 1 - above
        for n in range(BLOCKS + 1):
            children = 1
            residual(f"up_blocks.{above}.resnets.{n}", f"output_blocks.{number}.0")
            if level in attends:
                attention(f"up_blocks.{above}.attentions.{n}", f"output_blocks.{number}.1")
                children = 2
            if n == BLOCKS and level:
                residual(f"up_blocks.{above}.upsamplers.0", f"output_blocks.{number}.{children}")
            number += 1
    return made


def configs(folder: Path) -> dict[str, Any]:
    """The tiny networks' settings, which files of the published size don't need."""
    from dalle_2.pipelines.karlo import KarloParts

    parts = KarloParts(folder)
    networks = ("prior", "decoder", "text_proj", "super_res_first", "super_res_last")
    schedulers = ("prior_scheduler", "decoder_scheduler", "super_res_scheduler")
    return {name: parts.config(name) for name in (*networks, *schedulers)}


@pytest.fixture(scope="module")
def loaded(folder: Path, original: Path) -> DALLe2:
    placement = Placement("cpu", "float32")
    return load_karlo_original(original, original / "clip", placement=placement, configs=configs(folder))


def test_both_forms_hold_the_same_weights(folder: Path, loaded: DALLe2) -> None:
    expected = dalle_2.load(folder, device="cpu", dtype="float32")
    both = ((p.prior, p.decoder, *p.upsamplers) for p in (loaded, expected))
    for ours, wanted in zip(*both, strict=True):
        assert ours is not None
        assert wanted is not None
        state = wanted.state_dict()
        assert state.keys() == ours.state_dict().keys()
        for name, value in ours.state_dict().items():
            assert torch.allclose(value, state[name], atol=1e-6), name
    assert loaded.prior.space == expected.prior.space  # type: ignore[union-attr]


def test_both_forms_draw_the_same_picture(folder: Path, loaded: DALLe2) -> None:
    expected = dalle_2.load(folder, device="cpu", dtype="float32").generate(["a red fox"], 3, seeds=1)
    assert torch.allclose(loaded.generate(["a red fox"], 3, seeds=1), expected, atol=1e-4)


def test_they_become_a_folder_of_ours(
    folder: Path, original: Path, loaded: DALLe2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = partial(load_karlo_original, configs=configs(folder))
    monkeypatch.setattr("dalle_2.pipelines.convert.load_karlo_original", tiny)
    call = ["models", "convert", str(original), str(tmp_path / "ours"), "--clip", str(original / "clip")]
    assert main(call) == 0
    made = dalle_2.load(tmp_path / "ours", device="cpu")
    wanted = loaded.generate(["a red fox"], seeds=[3], steps=2)
    assert torch.equal(made.generate(["a red fox"], seeds=[3], steps=2), wanted)


def test_what_is_missing_or_something_else_is_named(original: Path, folder: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(original, tmp_path / "copy"))
    # Nothing of this size was ever published.
    with pytest.raises(CheckpointError, match=r"don't fit: missing .*model\.input_blocks\.6"):
        _ = load_karlo_original(home, home / "clip", placement=Placement("cpu", "float32")).decoder
    (home / "ViT-L-14_stats.th").unlink()
    with pytest.raises(CheckpointError, match=r"holds no file ViT-L-14_stats\.th"):
        dalle_2.load(home, device="cpu")
    torch.save([1, 2], home / "ViT-L-14_stats.th")
    pipeline = load_karlo_original(home, home / "clip", placement=Placement("cpu", "float32"), configs=configs(folder))
    with pytest.raises(CheckpointError, match="a mean and a spread"):
        _ = pipeline.prior
    torch.save({"weights": 1}, next(home.glob("decoder-ckpt*")))
    with pytest.raises(CheckpointError, match="no state_dict"):
        _ = pipeline.decoder
