"""CLIPEncoder: every way to a CLIP, and one sentence where there is none."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dalle_2.config import override
from dalle_2.errors import CheckpointError, Dalle2Error, HubError, MissingExtra, UsageError
from dalle_2.models import clip_loading
from dalle_2.models.checkpoints import save_model
from dalle_2.models.clip import CLIP, CLIPConfig
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.text.tokenizer import Tokenizer

PROMPTS = ["a red circle", "", "a blue square above a green star", "a red circle"]


def tokenizer() -> Tokenizer:
    return Tokenizer.train(PROMPTS, vocab_size=280, context_length=12)


def clip(**changes) -> CLIP:
    config = CLIPConfig.model_validate(
        {
            "vision": {"width": 16, "depth": 1, "heads": 2, "image_size": 16, "patch": 8},
            "text": {"width": 16, "depth": 1, "heads": 2, "vocab_size": 280, "context_length": 12},
            "embed_dim": 6,
        }
    )
    return CLIP(override(config, changes))


def pictures() -> list[Image.Image]:
    sizes = [(16, 16), (40, 24), (7, 30), (16, 16)]
    colours = ["red", "green", "blue", "red"]
    return [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]


def test_embeddings_are_unit_float32_without_gradient():
    model = clip()
    encoder = CLIPEncoder(model, tokenizer=tokenizer(), batch_size=3)
    z_txt, z_img = encoder.encode_text(PROMPTS), encoder.encode_images(pictures())
    for z in (z_txt, z_img):
        assert z.shape == (4, encoder.dim)
        assert z.dtype == torch.float32
        assert not z.requires_grad
        torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(z[0], z[3])  # in another batch of the same call
    raw = model.encode_text(tokenizer()(PROMPTS)).detach()
    torch.testing.assert_close(z_txt, raw / raw.norm(dim=1, keepdim=True))


def test_the_declared_space_decides_and_an_argument_overrides():
    raw = CLIPEncoder(clip(normalised=False), tokenizer=tokenizer())
    assert not raw.space.normalised
    assert (raw.encode_text(PROMPTS).norm(dim=1) - 1).abs().max() > 0.01
    assert CLIPEncoder(raw.model, tokenizer=tokenizer(), normalise=True).space.normalised


def test_nothing_gives_nothing():
    encoder = CLIPEncoder(clip(), tokenizer=tokenizer())
    assert encoder.encode_text([]).shape == (0, 6)
    assert encoder.encode_images([]).shape == (0, 6)


def test_half_precision_still_gives_float32():
    full = CLIPEncoder(clip(), tokenizer=tokenizer())
    exact = full.encode_text(PROMPTS), full.encode_images(pictures())
    half = CLIPEncoder(full.model, tokenizer=tokenizer(), dtype=torch.bfloat16)
    for z, expected in zip((half.encode_text(PROMPTS), half.encode_images(pictures())), exact, strict=True):
        assert z.dtype == torch.float32
        assert (z - expected).abs().max() < 0.05


def stored(folder: Path) -> CLIP:
    model = clip(phrases=32, thumbnail=8)
    save_model(model, folder / "clip.safetensors")
    tokenizer().save(folder / "tokenizer.json")
    return model


def test_our_weight_file_and_our_folder(tmp_path: Path):
    expected = CLIPEncoder(stored(tmp_path), tokenizer=tokenizer()).encode_text(PROMPTS)
    for source in (tmp_path, tmp_path / "clip.safetensors", str(tmp_path / "clip.safetensors")):
        assert torch.equal(CLIPEncoder(source).encode_text(PROMPTS), expected)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no file .*tokenizer.json"):
        CLIPEncoder(tmp_path)


def hub_layout(folder: Path):
    """A tiny random CLIP of transformers in the Hugging Face layout; gives that model."""
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 280, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1} | {
        "num_attention_heads": 2, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 279
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1} | {
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8
    }  # fmt: skip
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    ).eval()
    model.save_pretrained(folder)
    letters = [f"{letter}{end}" for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: i for i, token in enumerate([*letters, "re", "<|startoftext|>"])} | {
        "<|endoftext|>": 279
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n")
    return model


@torch.no_grad()
def test_a_folder_in_the_hugging_face_layout(tmp_path: Path):
    from transformers import CLIPImageProcessor, CLIPTokenizer

    reference = hub_layout(tmp_path)
    encoder = CLIPEncoder(tmp_path)
    ids = CLIPTokenizer.from_pretrained(tmp_path)(
        PROMPTS, padding="max_length", truncation=True, max_length=12
    )
    z = reference.get_text_features(input_ids=torch.tensor(ids["input_ids"]))
    z = z if isinstance(z, torch.Tensor) else z.pooler_output
    assert (encoder.encode_text(PROMPTS) - z / z.norm(dim=1, keepdim=True)).abs().max() < 1e-5

    noise = torch.randint(0, 256, (37, 29, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [Image.fromarray(noise.numpy()), Image.fromarray(noise[:29].numpy())]
    resize = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    z = reference.get_image_features(
        pixel_values=torch.stack([torch.tensor(x) for x in resize(images)["pixel_values"]])
    )
    z = z if isinstance(z, torch.Tensor) else z.pooler_output
    cosine = (encoder.encode_images(images) * z / z.norm(dim=1, keepdim=True)).sum(1)
    assert cosine[0] > 0.99  # their crop is in whole pixels, ours is not
    assert cosine[1] > 0.99999


def test_the_other_forms_of_the_same_folder(tmp_path: Path):
    reference = hub_layout(tmp_path)
    expected = CLIPEncoder(tmp_path).encode_text(PROMPTS)
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(CLIPEncoder(tmp_path).encode_text(PROMPTS), expected)

    names = list(tensors)
    table = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(table.values()):
        save_file({name: tensors[name] for name in names if table[name] == part}, tmp_path / part)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert torch.equal(CLIPEncoder(tmp_path).encode_text(PROMPTS), expected)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weight file .*part-1"):
        CLIPEncoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        CLIPEncoder(tmp_path)


def test_the_hub_cache_is_used_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--tiny-clip"
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    hub_layout(snapshot)
    expected = CLIPEncoder(snapshot).encode_text(PROMPTS)
    assert torch.equal(CLIPEncoder("someone/tiny-clip").encode_text(PROMPTS), expected)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(HubError):
        CLIPEncoder("someone/tiny-clip")


def test_without_network_and_cache_the_error_says_what_where_and_two_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HubError) as error:
        CLIPEncoder()
    message = str(error.value)
    for part in (
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        str(tmp_path / "cache"),
        "dalle2 models download",
        "CLIPEncoder takes a folder",
    ):
        assert part in message
    assert "\n" not in message


def test_what_is_no_clip(tmp_path: Path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    cases: list[tuple[object, type[Dalle2Error], str]] = [
        ("no clip", UsageError, "found no CLIP 'no clip'"),
        (tmp_path / "nowhere", UsageError, "found no CLIP"),
        (tmp_path / "x.safetensors", CheckpointError, "no weight file"),
        (tmp_path, CheckpointError, "no config.json"),
        (tmp_path / "bert", CheckpointError, "model_type 'bert'"),
        ("openclip:ViT-B-32", UsageError, "expected 'openclip:MODEL/tag'"),
        (clip(), UsageError, "give CLIPEncoder its tokenizer"),
    ]
    for source, kind, message in cases:
        with pytest.raises(kind, match=message):
            CLIPEncoder(source)
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        CLIPEncoder(clip(), tokenizer=tokenizer(), batch_size=0)


def test_a_clip_folder_without_weights_or_with_a_damaged_config(tmp_path: Path):
    hub_layout(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        CLIPEncoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be read as JSON"):
        CLIPEncoder(tmp_path)


def test_a_tokenizer_of_another_clip():
    with pytest.raises(UsageError, match="280 tokens and rows of 12, but this CLIP knows 270"):
        CLIPEncoder(clip(**{"text.vocab_size": 270}), tokenizer=tokenizer())
    with pytest.raises(UsageError, match="with id 2, but this CLIP reads it at id 7"):
        CLIPEncoder(clip(**{"text.eos_id": 7}), tokenizer=tokenizer())


def test_openclip_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match=r"open_clip_torch.*dalle_2\[openclip\]"):
        CLIPEncoder("openclip:ViT-B-32/laion2b_s34b_b79k")


class FakeOpenCLIP(torch.nn.Module):
    """As much of an open_clip model as the adapter touches."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = types.SimpleNamespace(
            image_size=(16, 16), image_mean=(0.4, 0.4, 0.4), image_std=(0.2, 0.2, 0.2)
        )
        self.weight = torch.nn.Parameter(torch.eye(5))

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) @ self.weight[:3]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, :5].float() @ self.weight


def test_an_openclip_model_gets_its_own_normalisation(monkeypatch: pytest.MonkeyPatch):
    module = types.SimpleNamespace(
        create_model=lambda name, pretrained: FakeOpenCLIP(),
        list_pretrained=lambda: [("Tiny", "tag")],
        get_tokenizer=lambda name: lambda texts: torch.ones(len(texts), 7, dtype=torch.long),
    )
    monkeypatch.setattr(clip_loading, "_open_clip", lambda: module)
    encoder = CLIPEncoder("openclip:Tiny/tag", normalise=False)
    assert encoder.dim == 5
    white = Image.new("RGB", (20, 20), "white")
    torch.testing.assert_close(encoder.encode_images([white])[0, :3], torch.full((3,), (1 - 0.4) / 0.2))
    assert encoder.encode_text(["x", "y"]).shape == (2, 5)
    with pytest.raises(UsageError, match="no weights 'other' for a model 'Tiny'"):
        CLIPEncoder("openclip:Tiny/other")
