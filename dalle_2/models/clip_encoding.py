"""The one door through which prompts and pictures become CLIP embeddings."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from dalle_2.errors import UsageError
from dalle_2.images import check_picture, from_pil
from dalle_2.models.clip import CLIP
from dalle_2.models.clip_loading import Loaded, TextToTokens, load_clip
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.modes import evaluating
from dalle_2.models.packed import Packed
from dalle_2.models.rest import at_work, whole
from dalle_2.published import DEFAULT_CLIP
from dalle_2.text.prompts import Prompts, listed_prompts
from dalle_2.text.tokenizer import Tokenizer

T = TypeVar("T")


class CLIPEncoder:
    """Texts and PIL pictures to float32 embeddings without gradient, of unit length unless the CLIP says raw.

    model: by default OpenCLIP ViT-B/32 from the hub cache or the hub. Also a CLIP of ours with
        `tokenizer`; a weight file of ours with tokenizer.json beside it; a folder in the Hugging Face layout;
        a hub id; or "openclip:ViT-B-32/laion2b_s34b_b79k" where open_clip is installed.
    device, dtype: where and in what precision it computes; by default float32 on the CPU, and a model that is
        given stays as it is.
    normalise: overrides what the CLIP declares about unit length.
    batch_size: how many texts or pictures go through the model at once.

    Raises HubError if a hub model is neither cached nor reachable, CheckpointError for weights that are
    damaged or don't fit, MissingExtra without open_clip, UsageError for anything else that is no CLIP.
    """

    def __init__(
        self,
        model: CLIP | str | Path | None = None,
        *,
        tokenizer: TextToTokens | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        normalise: bool | None = None,
        batch_size: int = 64,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        loaded = _loaded(DEFAULT_CLIP if model is None else model, tokenizer)
        _check_fit(loaded)
        moves = device is not None or dtype is not None
        self.model = whole(loaded.model).to(device=device, dtype=dtype) if moves else loaded.model
        self.tokenizer = loaded.tokenizer
        self.batch_size = batch_size
        self.space = EmbeddingSpace(
            dim=loaded.model.embed_dim,
            normalised=loaded.model.normalised if normalise is None else normalise,
        )

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or another process: weights that lie in files are read from them there."""
        return {**vars(self), "model": Packed(self.model, [self.model])}

    @property
    def dim(self) -> int:
        """How many numbers an embedding has."""
        return self.space.dim

    def encode_text(self, prompts: Prompts | Any) -> Float[Tensor, "n d"]:
        """One embedding a prompt, (N, dim). An empty prompt is a prompt; an empty list gives (0, dim).

        prompts: strings, or lists of the words of each; one string is one prompt. Raises UsageError for others.
        """
        listed = listed_prompts(prompts)
        if wrong := [prompt for prompt in listed if not isinstance(prompt, str)]:
            raise UsageError(f"a prompt is a string or a list of its words, got {wrong[0]!r}: write it as one")
        return self._in_batches(listed, lambda some: self.model.encode_text(self._tokens(some)), "text")

    def encode_images(self, images: Image.Image | Sequence[Image.Image] | Any) -> Float[Tensor, "n d"]:
        """One embedding a picture, (N, dim), of its central square; resized bicubically with antialiasing.

        images: PIL pictures, or one. Raises UsageError for others.
        """
        listed = listed_pictures(images)
        return self._in_batches(listed, lambda some: self.model.encode_image(self._pixels(some)), "vision")

    def to(self, device: torch.device | str) -> "CLIPEncoder":
        """Moves the model, and returns this encoder."""
        whole(self.model).to(device)
        return self

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        return self.tokenizer(list(prompts)).to(self._parameter("text").device)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([from_pil(image, self.model.image_size) for image in images])
        return pixels.to(self._parameter("vision"))

    def _tower(self, name: str) -> nn.Module:
        """The one for texts or the one for pictures, in a model that has them apart; else the model."""
        tower = getattr(self.model, name, None)
        return tower if isinstance(tower, nn.Module) else self.model

    def _parameter(self, tower: str) -> Tensor:
        """Stands for a tower's device and dtype, which may have changed since."""
        return next(self._tower(tower).parameters())

    @torch.no_grad()
    def _in_batches(
        self, items: Sequence[T], encode: Callable[[Sequence[T]], Tensor], tower: str
    ) -> Float[Tensor, "n d"]:
        batches = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        with evaluating(self.model), at_work(self.model, self._tower(tower)):
            device = self._parameter(tower).device
            empty = torch.zeros(0, self.dim, dtype=torch.float32, device=device)
            with torch.autocast(device.type, enabled=False):  # the model has its own dtype
                return self.space.finish(torch.cat([empty, *(encode(batch).float() for batch in batches)]))


def listed_pictures(images: Any) -> list[Image.Image]:
    """PIL pictures as a list; a lone one counts as one. Raises UsageError for anything else."""
    several = isinstance(images, Iterable) and not isinstance(images, Image.Image | str)
    listed: list[Any] = list(images) if several else [images]
    for image in listed:
        check_picture(image)
    return listed


def _loaded(model: CLIP | str | Path, tokenizer: TextToTokens | None) -> Loaded:
    if not isinstance(model, CLIP):
        loaded = load_clip(model)
        return loaded if tokenizer is None else loaded._replace(tokenizer=tokenizer)
    if tokenizer is None:
        raise UsageError("a CLIP model comes without its vocabulary: give CLIPEncoder its tokenizer too")
    return Loaded(model, tokenizer)


def _check_fit(loaded: Loaded) -> None:
    """Raises UsageError if the tokens would mean something else to the model."""
    if not (isinstance(loaded.model, CLIP) and isinstance(loaded.tokenizer, Tokenizer)):
        return
    text, tokenizer = loaded.model.config.text, loaded.tokenizer
    if tokenizer.vocab_size > text.vocab_size or tokenizer.context_length > text.context_length:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and rows of {tokenizer.context_length}, "
            f"but this CLIP knows {text.vocab_size} and reads {text.context_length}: "
            "use the tokenizer it was trained with"
        )
    if text.pool == "eos" and tokenizer.eos_id != text.eos_id:
        raise UsageError(
            f"the tokenizer ends a text with id {tokenizer.eos_id}, but this CLIP reads it at id "
            f"{text.eos_id}: use the tokenizer it was trained with"
        )
