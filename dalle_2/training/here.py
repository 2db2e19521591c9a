"""How long a training would take on this machine, by a few steps of each stage on made-up pairs."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.sampling.noise import normal, whole_numbers
from dalle_2.training.dry_run import DryRun, untrained
from dalle_2.training.progress import minutes
from dalle_2.training.recipe import Recipe
from dalle_2.training.stage import machine, optimiser, trainer_settings
from dalle_2.training.trainer import DALLe2Trainer

LARGEST = 200e6  # parameters of a model that is tried
MOST = 1e12  # operations of a picture that are tried
A_STEP = 3e10  # operations of a step that is timed
STEPS = 2


def tried(recipe: Recipe, runs: Mapping[str, DryRun], device: str) -> str:
    """A sentence of every stage's time from start to end, and of all together."""
    seconds = {name: _seconds(recipe, run, device) for name, run in runs.items()}
    known = {name: value for name, value in seconds.items() if value is not None}
    where = f"on this machine ({machine(torch.device(device))})"
    untried = ", ".join(name for name in seconds if name not in known)
    beyond = f"{untried}: too large to be tried here" if untried else ""
    if not known:
        return f"{where}: {beyond}"
    words = ", ".join(f"{name} {minutes(value)}" for name, value in known.items())
    total = f"; one after the other {minutes(sum(known.values()))}" if len(known) > 1 else ""
    return f"{where}, by {STEPS} steps of each, about: {words}{total}{f'; {beyond}' if beyond else ''}"


def _seconds(recipe: Recipe, run: DryRun, device: str) -> float | None:
    """Of the whole stage; None for a model that is too large to be tried."""
    if run.parameters > LARGEST or run.flops > MOST:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = untrained(recipe, run.stage).to(device)
        rows = max(2, min(run.run.batch, int(A_STEP / max(run.flops, 1))))
        pairs = {name: value.to(device) for name, value in made_up(model, rows).items()}
        trainer = DALLe2Trainer(
            model, str(model.kind), optimiser(model, run.run), dataloader=[pairs], save_dir=".",
            settings=trainer_settings(run.run, 0),
        )  # fmt: skip
        noised = model.noised(pairs, torch.Generator().manual_seed(0))  # type: ignore[operator]
        trainer.train_step(noised)  # the first one is slower than all others
        began = time.monotonic()
        for _ in range(STEPS):
            trainer.train_step(noised)
        return (time.monotonic() - began) / STEPS / rows * run.run.images


def made_up(model: nn.Module, rows: int) -> dict[str, Tensor]:
    """Clean pairs of the shapes that a model learns from, and of no meaning."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    if model.kind == "clip":
        side = config.vision.image_size
        return {"image": _pictures(rows, side, generator), "tokens": _tokens(config.text, rows, generator)}
    words = {"tokens": _tokens(config.caption, rows, generator)} if getattr(config, "caption", None) else {}
    space: Any = getattr(model, "space", None)
    dim = space.dim if space is not None else 1
    z = {name: F.normalize(normal((rows, dim), generator), dim=-1) for name in ("z_img", "z_txt")}
    if "image_size" not in type(config).model_fields:
        return {**z, **words}
    side = getattr(config, "crop", None) or config.image_size
    return {**z, **words, "image": _pictures(rows, side, generator)}


def _pictures(rows: int, side: int, generator: torch.Generator) -> Tensor:
    return normal((rows, 3, side, side), generator).clamp(-1, 1)


def _tokens(text: TextConfig, rows: int, generator: torch.Generator) -> Tensor:
    tokens = whole_numbers(text.vocab_size - 3, (rows, text.context_length), generator) + 3
    tokens[:, -1] = text.eos_id
    return tokens
