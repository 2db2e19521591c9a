"""What the stages have in common: an optimiser, a trainer, a run that goes on where it stopped, a weight file."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle_2.models.checkpoints import save_model
from dalle_2.training.lost_steps import check_learned
from dalle_2.training.lr_schedule import LRSchedule
from dalle_2.training.muon import Muon
from dalle_2.training.precision import choose_dtype
from dalle_2.training.progress import Reporter
from dalle_2.training.recipe import RunSettings
from dalle_2.training.trainer import DALLe2Trainer, TrainerSettings

HIDDEN = (32, 2048)  # rows and columns that Muon is used for


def optimiser(model: nn.Module, run: RunSettings) -> torch.optim.Optimizer:
    """Muon for the weights of hidden layers and AdamW for the rest, or AdamW alone; biases and gains don't decay."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    hidden = hidden_weights(model) if run.optimizer == "muon" else []
    chosen = {id(p) for p in hidden}
    groups: list[dict[str, Any]] = [
        {"params": hidden, "orthogonal": True},
        {"params": [p for p in weights if id(p) not in chosen]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return Muon(
        [group for group in groups if group["params"]],
        lr=run.lr, betas=run.betas, eps=run.eps, weight_decay=run.weight_decay, dtype=matrix_dtype(model, run),
    )  # fmt: skip


def matrix_dtype(model: nn.Module, run: RunSettings) -> torch.dtype:
    """What Muon computes in: bfloat16 where the run does and convolutions gain from it, else float32."""
    device = next(model.parameters()).device
    dtype = choose_dtype(run.dtype, device, transformer=False)
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Matrices and kernels between features; those to or from few numbers (pixels) or very many (classes) are not."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    return [layer.weight for layer in layers if _is_hidden(*layer.weight.flatten(1).shape)]


def _is_hidden(rows: int, columns: int) -> bool:
    least, most = HIDDEN
    return least <= rows <= most and least <= columns


def trainer_settings(run: RunSettings, seed: int) -> TrainerSettings:
    """The loop's settings for a stage."""
    warmup = min(run.warmup, run.images - 1)
    return TrainerSettings(
        seed=seed,
        dtype=run.dtype,
        accumulate=run.accumulate,
        clip_norm=run.clip_norm,
        lr_schedule=LRSchedule(warmup=warmup, total=run.images),
        ema_halflife=run.ema_halflife,
        save_every=run.save_every,
        preview_every=run.preview_every,
    )


def run_stage(
    model: nn.Module,
    kind: str,
    run: RunSettings,
    batches: Any,
    folder: Path,
    *,
    seed: int,
    reporter: Reporter,
    preview: Callable[[nn.Module], Any] | None = None,
) -> Path:
    """Trains `model` to the end of its run; returns its weight file, `STAGE.safetensors` in the folder STAGE.

    Raises what `check_learned` does, at each call.
    """
    trainer = DALLe2Trainer(
        model,
        kind,
        optimiser(model, run),
        getattr(model, "noise_scheduler", None),
        None,
        batches,
        False,
        folder,
        run.log_interval,
        settings=trainer_settings(run, seed),
        reporter=reporter,
        preview=preview,
        name=folder.name,
    )
    trainer.resume()
    trainer.fit(run.images)
    check_learned(trainer, folder)
    path = folder / f"{folder.name}.safetensors"
    save_model(trainer.best_model, path, provenance=provenance(trainer, run))
    return path


def provenance(trainer: DALLe2Trainer, run: RunSettings) -> dict[str, Any]:
    """Where the weights come from: images seen, steps skipped, minutes, machine, and the settings of the run."""
    lost = {"skipped": trainer.lost} if trainer.lost else {}
    return {
        "images": trainer.images,
        **lost,
        "minutes": round(trainer.seconds / 60, 1),
        "machine": machine(trainer.device),
        "run": run.model_dump(mode="json"),
    }


def machine(device: torch.device) -> str:
    """The processor in a few words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
