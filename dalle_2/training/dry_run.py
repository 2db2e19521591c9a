"""What a training would take, without training: parameters, operations, memory, days."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dalle_2.errors import UsageError
from dalle_2.models.layers.text_transformer import TextTransformer
from dalle_2.training.paper import parameters
from dalle_2.training.recipe import RunSettings

# Peak rates of one device, in floating-point operations a second (bfloat16, dense), from the makers' data sheets.
HARDWARE: Mapping[str, float] = {
    "v100": 125e12,
    "rtx4090": 165e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "tpu-v4": 275e12,
}
UTILISATION = 0.4  # what a well-tuned training reaches of that
BACKWARD = 2  # the backward pass costs twice the forward one
BYTES = 4  # of a number; weights, their gradients and the optimiser's two averages are in float32
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class DryRun:
    """One stage. flops: of a training step, a picture. activations: bytes that a picture's forward pass keeps."""

    name: str
    parameters: int
    trained: int
    flops: float
    activations: int
    run: RunSettings
    stated: str = ""

    @property
    def weights_bytes(self) -> int:
        """Weights, average, gradients and two moments."""
        return BYTES * (self.parameters * (2 if self.run.ema_halflife else 1) + 3 * self.trained)

    def batch_bytes(self, batch: int | None = None) -> int:
        """What a step takes for so many pictures, by default a micro-batch of the run."""
        size = batch or self.run.batch // self.run.accumulate
        return self.weights_bytes + size * self.activations

    def days(self, rate: float, devices: int = 1, utilisation: float = UTILISATION) -> float:
        """How long the run takes on devices of that peak rate."""
        return self.run.images * self.flops / (rate * devices * utilisation) / SECONDS_A_DAY


def hardware_rate(name: str) -> float:
    """The peak rate of a device. Raises UsageError that lists those that are known."""
    if name.lower() not in HARDWARE:
        raise UsageError(f"no figures for {name!r}: there are {', '.join(HARDWARE)}")
    return HARDWARE[name.lower()]


def dry_run(name: str, model: nn.Module, run: RunSettings, stated: str = "") -> DryRun:
    """Counts a model that lies on the meta device, on a batch of one."""
    with watched(model) as seen, FlopCounterMode(display=False) as counter:
        forward_once(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops = (1 + BACKWARD) * counter.get_total_flops()
    return DryRun(name, parameters(model), trained, float(flops), sum(seen), run, stated)


def forward_once(model: Any) -> Tensor:
    """The network's answer to one row of the shapes that it is trained on, with a caption as long as the context."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    words = _words(model.caption) if getattr(model, "caption", None) is not None else {}
    if model.kind == "prior":
        return model.network(empty(model.config.dim), empty(model.space.width), empty(model.config.width), **words)
    unet = model.config.unet
    size = getattr(model.config, "crop", None) or model.config.image_size
    channels = {"low_res": unet.low_res_channels, "known": unet.known_channels}
    pictures = {name: empty(count, size, size) for name, count in channels.items() if count}
    return model.network(empty(3, size, size), empty(unet.z_dim), empty(unet.t_dim), **pictures, **words)


def _words(text: TextTransformer) -> dict[str, Tensor]:
    tokens = torch.empty(1, text.config.context_length, dtype=torch.long, device="meta")
    return {"states": text.states(tokens), "valid": torch.empty(tokens.shape, dtype=torch.bool, device="meta")}


@contextmanager
def watched(model: nn.Module) -> Iterator[list[int]]:
    """Bytes of what every layer without parts gives out while the block runs: about what the backward pass needs."""
    seen: list[int] = []

    def note(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            seen.append(out.numel() * out.element_size())

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def table(runs: list[DryRun], hardware: str, devices: int) -> str:
    """Markdown, one row a stage."""
    rate = hardware_rate(hardware)
    head = ["stage", "parameters", "stated", "FLOPs a picture", "pictures", "batch", "memory, one picture a device"]
    head += [f"days on {devices} × {hardware}"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in runs:
        cells = [
            one.name, f"{one.parameters:,}", one.stated or "–", f"{one.flops:.3g}", f"{one.run.images:,}",
            f"{one.run.batch:,}", f"{one.batch_bytes(1) / 2**30:.1f} GiB", f"{one.days(rate, devices):.2g}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
