"""Settings that come with weights have upper bounds, and describe no more than their file has tensors of."""

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from dalle_2.errors import CheckpointError
from dalle_2.models.checkpoints import KINDS, load_model, shelved
from dalle_2.weights.checkpoint import save_checkpoint

TINY = {"width": 8, "depth": 1, "heads": 2}
CLIP = {"text": TINY, "vision": {**TINY, "image_size": 16, "patch": 8}, "embed_dim": 8}
PRIOR = {"dim": 8, "width": 8, "depth": 1, "heads": 2}
UNET = {
    "channels": 8, "multiples": [1], "blocks": 1, "attention": [], "middle_attention": False, "z_dim": 8, "t_dim": 8,
}  # fmt: skip
DECODER = {"image_size": 16, "unet": UNET}


# Numbers that are held against other settings, or by a rule of the whole row; their rows have lengths all the same.
RULED = {"eps_mean_square", "basis", "mean", "std", "attention", "strength", "blur", "axes", "noise"}


def unbounded(schema: Any, name: str = "") -> Iterator[str]:
    """The names of numbers without a bound above, and of rows without a length, in a JSON schema."""
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind in ("integer", "number") and not {"maximum", "exclusiveMaximum"} & schema.keys() and name not in RULED:
        yield f"{name}: a number"
    if kind == "array" and "maxItems" not in schema and name != "basis":  # whose rows are as long as an embedding
        yield f"{name}: a row"
    inner = [*schema.get("anyOf", ()), *schema.get("prefixItems", ()), schema.get("items")]
    for part in inner:
        yield from unbounded(part, name)
    for named in (schema.get("properties", {}), schema.get("$defs", {})):
        for name, part in named.items():
            yield from unbounded(part, name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_and_every_row_of_stored_settings_has_a_bound_above(kind):
    settings = getattr(importlib.import_module(KINDS[kind].module), KINDS[kind].settings)
    assert list(unbounded(settings.model_json_schema())) == []


def test_the_walk_finds_what_has_no_bound():
    class Loose(BaseModel):
        width: int
        rows: tuple[float, ...] | None = None

    assert list(unbounded(Loose.model_json_schema())) == ["width: a number", "rows: a row", "rows: a number"]


def header(path: Path, kind: str, config: dict[str, Any]) -> Path:
    """A weight file of one number."""
    save_checkpoint(path, kind, config, {"log_scale": torch.zeros(())})
    return path


@pytest.mark.parametrize("number", [10**6, 10**18, 10**400, -1, True, "many", float("nan"), None])
@pytest.mark.parametrize(
    ("kind", "config", "place"),
    [
        ("clip", CLIP, ("text", "depth")),
        ("clip", CLIP, ("text", "context_length")),
        ("clip", CLIP, ("vision", "image_size")),
        ("prior", PRIOR, ("depth",)),
        ("prior", PRIOR, ("T",)),
        ("decoder", DECODER, ("unet", "blocks")),
        ("decoder", DECODER, ("unet", "patch")),
        ("upsampler", {"unet": UNET | {"low_res_channels": 3}}, ("T",)),
        ("draft", {}, ("depth",)),
        ("dvae", {}, ("groups",)),
    ],
)
def test_a_number_that_can_not_be_is_refused_at_once(tmp_path, kind, config, place, number):
    changed = {**config, place[0]: {**config[place[0]], place[1]: number} if len(place) == 2 else number}
    path, began = header(tmp_path / "part.safetensors", kind, changed), time.monotonic()
    for read in (load_model, lambda path: shelved(path).build()):
        with pytest.raises(CheckpointError, match=r"part\.safetensors"):
            read(path)
    assert time.monotonic() - began < 5


def test_settings_of_more_layers_than_the_file_has_tensors_of_are_not_built(tmp_path):
    many = {"image_size": 2**12, "unet": {**UNET, "multiples": [1] * 10, "blocks": 32}}
    with pytest.raises(CheckpointError, match="describe more layers than its 1 tensors are of"):
        load_model(header(tmp_path / "many.safetensors", "decoder", many))


def test_sizes_whose_product_can_not_be_counted_are_said_in_a_sentence(tmp_path):
    wide = {"unet": {**UNET, "channels": 2**14, "multiples": [256, 256], "patch": 256}, "image_size": 4096}
    with pytest.raises(CheckpointError, match=r"wide\.safetensors"):
        load_model(header(tmp_path / "wide.safetensors", "decoder", wide))


def test_a_model_too_large_for_the_memory_is_not_given_any_before_its_tensors_are_known_to_fit(tmp_path):
    deep = {"text": {"width": 2**14, "heads": 2, "depth": 100, "mlp_width": 2**17}, "vision": None}
    with pytest.raises(CheckpointError, match="don't fit CLIP: missing"):
        load_model(header(tmp_path / "deep.safetensors", "clip", deep))
