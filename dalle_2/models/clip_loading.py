"""CLIP models from where they lie: our file, a folder in the Hugging Face layout, the hub, OpenCLIP."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dalle_2 import hub
from dalle_2.cached import HUB_ID, WEIGHT_FILES, cached_clip, parts_of, weights_in
from dalle_2.config import parse
from dalle_2.errors import CheckpointError, HubError, MissingExtra, UsageError
from dalle_2.json_file import read_object
from dalle_2.models.checkpoints import load_model
from dalle_2.models.clip import CLIP, CLIPConfig
from dalle_2.models.unfilled import empty_of, give_memory, in_memory
from dalle_2.paths import at_home
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.weights.checkpoint import check_tensors, load_tensors, read_tensors
from dalle_2.weights.hf_clip import convert_config, convert_tensors

OWN_FILES = ("clip.safetensors", "clip.pth")
TOKENIZER_FILE = "tokenizer.json"
OPENCLIP = "openclip:"


@runtime_checkable
class TextToTokens(Protocol):
    """One row of ids a text."""

    def __call__(self, texts: list[str]) -> Int[Tensor, "n l"]: ...


class OpenCLIPModel(nn.Module):
    """Any model of open_clip behind the few names that CLIPEncoder needs."""

    normalised = True
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, tag: str) -> None:
        super().__init__()
        open_clip = _open_clip()
        self.model = open_clip.create_model(name, pretrained=tag)
        size = self.model.visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple | list) else size)
        for key in ("mean", "std"):
            channels = torch.tensor(getattr(self.model.visual, f"image_{key}"), dtype=torch.float32)
            self.register_buffer(key, channels.view(3, 1, 1))
        with torch.no_grad():
            self.embed_dim = int(self.model.encode_text(open_clip.get_tokenizer(name)([""])).shape[1])

    def encode_image(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return self.model.encode_image(((x + 1) / 2 - self.mean) / self.std)

    def encode_text(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        return self.model.encode_text(tokens)


class Loaded(NamedTuple):
    """A model and the tokenizer it was trained with."""

    model: CLIP | OpenCLIPModel
    tokenizer: TextToTokens


def load_clip(source: str | Path) -> Loaded:
    """A weight file or folder, a hub id "owner/name", or "openclip:MODEL/tag".

    Raises UsageError if it can be none of these, and what the function for each raises.
    """
    name, path = str(source), at_home(source)
    if name.startswith(OPENCLIP):
        return load_openclip(name.removeprefix(OPENCLIP))
    if path.is_dir():
        return load_clip_folder(path)
    if path.is_file() or path.suffix in (".safetensors", ".pth"):
        return load_clip_file(path)
    if isinstance(source, str) and HUB_ID.fullmatch(name):
        return load_clip_hub(name)
    raise UsageError(
        f"found no CLIP {name!r}: expected a file, a folder, a hub id 'owner/name' or 'openclip:MODEL/tag'"
    )


def load_clip_file(path: str | Path) -> Loaded:
    """A weight file of ours, with tokenizer.json beside it. Raises CheckpointError."""
    path = Path(path)
    model = load_model(path, CLIP.kind)
    assert isinstance(model, CLIP)
    return Loaded(model, Tokenizer.from_file(path.with_name(TOKENIZER_FILE)))


def load_clip_folder(folder: str | Path) -> Loaded:
    """A pipeline folder of ours, or a folder in the Hugging Face layout. Raises CheckpointError."""
    folder = Path(folder)
    for name in OWN_FILES:
        if (folder / name).exists():
            return load_clip_file(folder / name)
    preprocessing = folder / "preprocessor_config.json"
    values = convert_config(
        _read_json(folder / "config.json"), _read_json(preprocessing) if preprocessing.exists() else None
    )
    config = parse(CLIPConfig, values, where=str(folder / "config.json"))
    tensors = convert_tensors(_folder_tensors(folder))
    model = empty_of(lambda: CLIP(config), len(tensors), folder)
    check_tensors(model, tensors, folder)
    give_memory(model)
    load_tensors(model, tensors, folder)
    return Loaded(model.eval(), Tokenizer.from_clip_folder(folder, context_length=config.text.context_length))


def load_clip_hub(repo: str) -> Loaded:
    """A model in the Hugging Face layout from the local hub cache, else from the hub.

    Raises HubError if it is in neither, CheckpointError if what is there is not a CLIP.
    """
    return load_clip_folder(hub_folder(repo))


def hub_folder(repo: str) -> Path:
    """The local folder of a hub model: from the cache without network, else downloaded. Raises HubError."""
    try:
        return cached_clip(repo) or hub.fetch(repo)
    except HubError as error:
        raise HubError(
            f"{error}; dalle2 models download {repo} fetches this CLIP where there is a network, and CLIPEncoder takes "
            "a folder with a CLIP, or a CLIP of your own, as well"
        ) from error


def load_openclip(name: str) -> Loaded:
    """`MODEL/tag` as open_clip names them, "ViT-B-32/laion2b_s34b_b79k".

    Raises MissingExtra without open_clip, UsageError for another form or an unknown model or tag.
    """
    model, slash, tag = name.partition("/")
    if not (model and slash and tag):
        example = "openclip:ViT-B-32/laion2b_s34b_b79k"
        raise UsageError(f"got 'openclip:{name}': expected 'openclip:MODEL/tag', like {example!r}")
    open_clip = _open_clip()
    if (model, tag) not in open_clip.list_pretrained():
        raise UsageError(f"open_clip has no weights {tag!r} for a model {model!r}: see open_clip.list_pretrained()")
    return Loaded(in_memory(lambda: OpenCLIPModel(model, tag)).eval(), open_clip.get_tokenizer(model))


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise MissingExtra("openclip", "open_clip_torch", "loading OpenCLIP models") from None
    return open_clip


def _folder_tensors(folder: Path) -> dict[str, Tensor]:
    found = weights_in(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")
    return {name: tensor for part in parts_of(found) for name, tensor in read_tensors(folder / part).items()}


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path, f"{path.parent} is not a CLIP folder: it has no {path.name}")
