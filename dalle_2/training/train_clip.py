"""The first stage: a tokenizer for the captions, and a CLIP for captions and pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dalle_2.data.abs_dataset import AbsDataset, Example
from dalle_2.data.dataset import Batches, collate, first_of_order
from dalle_2.models.clip import CLIP, CLIPConfig
from dalle_2.text.tokenizer import Tokenizer
from dalle_2.training.progress import Reporter
from dalle_2.training.recipe import ClipStage
from dalle_2.training.stage import run_stage


def train_clip(
    stage: ClipStage,
    dataset: AbsDataset,
    folder: Path,
    *,
    shuffle: bool,
    seed: int,
    reporter: Reporter,
    device: str = "cpu",
) -> Path:
    """Trains a CLIP on captioned pictures; leaves `clip.safetensors` and `tokenizer.json` in `folder`."""
    tokenizer = learn_tokenizer(stage, dataset, folder, seed)
    torch.manual_seed(seed)
    model = CLIP.from_config(fitted(stage.config, tokenizer)).to(device)
    batches = Batches(
        dataset, stage.run.batch, collate=tokenised(tokenizer), seed=seed, shuffle=shuffle, prefetch=3
    )
    return run_stage(model, "clip", stage.run, batches, folder, seed=seed, reporter=reporter)


def learn_tokenizer(stage: ClipStage, dataset: AbsDataset, folder: Path, seed: int) -> Tokenizer:
    """The tokenizer of an earlier start, or one learned from the captions."""
    path = folder / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(path)
    count = min(stage.captions, len(dataset))
    captions = (dataset.caption(int(index)) for index in first_of_order(len(dataset), seed, count))
    tokenizer = Tokenizer.train(captions, stage.vocabulary, stage.config.text.context_length)
    tokenizer.save(path)
    return tokenizer


def fitted(config: CLIPConfig, tokenizer: Tokenizer) -> CLIPConfig:
    """The settings with the tokenizer's vocabulary and special tokens."""
    text = config.text.model_copy(
        update={"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
    )
    return config.model_copy(update={"text": text})


def tokenised(tokenizer: Tokenizer) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """Puts tokens in the place of captions."""

    def join(examples: Sequence[Example]) -> dict[str, Any]:
        batch = collate(examples)
        return {"image": batch["image"], "tokens": tokenizer(batch["caption"])}

    return join
