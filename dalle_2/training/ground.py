"""What every stage after CLIP stands on, and the steps they share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int32
from torch import nn
from torch.utils.data import Dataset

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.caption_tokens import caption_tokens
from dalle_2.data.dataset import Batches
from dalle_2.data.embeddings import EmbeddingStore
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.training.embed import measured_space
from dalle_2.training.progress import Reporter
from dalle_2.training.recipe import RunSettings, Sight
from dalle_2.training.stage import run_stage

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Ground:
    """The CLIP; the captioned pictures and their embeddings; the principal `directions` in which pictures are seen; and
    every run's seed, reporter and device."""

    encoder: CLIPEncoder
    captioned: AbsDataset
    store: EmbeddingStore
    directions: int | None
    seed: int
    reporter: Reporter
    device: str = "cpu"

    @cached_property
    def image_space(self) -> EmbeddingSpace:
        """The image embeddings, whitened."""
        normalised = self.encoder.space.normalised
        return measured_space(self.store.z_img, normalised=normalised, directions=self.directions)

    @cached_property
    def text_space(self) -> EmbeddingSpace:
        """The text embeddings, whitened, in all directions."""
        return measured_space(self.store.z_txt, normalised=self.encoder.space.normalised)

    def space_of(self, sight: Sight) -> EmbeddingSpace:
        """The space of the embeddings that a decoder is trained on."""
        return self.image_space if sight == "image" else self.text_space

    @cached_property
    def tokens(self) -> Int32[np.ndarray, "n l"]:
        """A row of tokens for each caption, in the order of the embeddings; made once."""
        identity = str(self.store.manifest.encoder_id)
        return caption_tokens(self.captioned, self.encoder.tokenizer, self.store.folder.parent, tokenizer_id=identity)

    def built(self, build: Callable[[], M]) -> M:
        """The untrained model that `build` makes, the same for every run of this seed."""
        torch.manual_seed(self.seed)
        return build().to(self.device)

    def run(
        self,
        model: nn.Module,
        run: RunSettings,
        rows: Dataset[Any],
        folder: Path,
        *,
        preview: Callable[[nn.Module], Any] | None = None,
    ) -> Path:
        """Trains `model` on `rows` to the end; returns its weight file in `folder`, which has the stage's name."""
        batches = Batches(rows, run.batch, seed=self.seed, prefetch=3)
        kind = str(model.kind)
        return run_stage(model, kind, run, batches, folder, seed=self.seed, reporter=self.reporter, preview=preview)
