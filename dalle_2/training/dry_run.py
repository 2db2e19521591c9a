"""What a training would take, without training: parameters, operations, memory, days."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dalle_2.errors import UsageError
from dalle_2.models.autoregressive_prior import AutoregressivePrior
from dalle_2.models.clip import CLIP
from dalle_2.models.decoder import Decoder
from dalle_2.models.draft import Draft
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer
from dalle_2.models.prior import Prior
from dalle_2.models.upsampler import Upsampler
from dalle_2.training.recipe import RGB, ClipStage, Recipe, RunSettings
from dalle_2.training.train_inpaint import painter_of

M = TypeVar("M", bound=nn.Module)

# Peak rates of one device, in floating-point operations a second (bfloat16, dense), from the makers' data sheets.
HARDWARE: Mapping[str, float] = {
    "v100": 125e12,
    "rtx4090": 165e12,
    "tpu-v4": 275e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
}
UTILISATION = 0.4  # what a well-tuned training reaches of that
BACKWARD = 2  # the backward pass costs twice the forward one
BYTES = 4  # of a number; weights, their gradients and the optimiser's averages are in float32
SECONDS_A_DAY = 86_400
PUBLISHED_DIM = 1024  # numbers of an embedding, where a published CLIP is only named: those of ViT-H


@dataclass(frozen=True)
class DryRun:
    """One stage. flops: of a training step, a picture. activations: bytes that a picture's forward pass keeps."""

    stage: str
    parameters: int
    trained: int
    flops: float
    activations: int
    run: RunSettings

    @property
    def state_bytes(self) -> int:
        """Weights, their average, gradients and two moments."""
        copies = 2 if self.run.ema_halflife else 1
        return BYTES * (copies * self.parameters + 3 * self.trained)

    def batch_bytes(self, pictures: int) -> int:
        """What a step takes for so many pictures at once."""
        return self.state_bytes + pictures * self.activations

    def days(self, rate: float, devices: int = 1, utilisation: float = UTILISATION) -> float:
        """How long the whole run takes on devices of that peak rate."""
        return self.run.images * self.flops / (rate * devices * utilisation) / SECONDS_A_DAY


def hardware_rate(name: str) -> float:
    """The peak rate of a device. Raises UsageError that lists those that are known."""
    if name.lower() not in HARDWARE:
        raise UsageError(f"no figures for {name!r}: there are {', '.join(HARDWARE)}")
    return HARDWARE[name.lower()]


def dry_run(recipe: Recipe, stage: str) -> DryRun:
    """Counts one stage of a recipe on a batch of one, with shapes and no memory.

    A published CLIP is not opened: its embeddings are taken to have the 1024 numbers of ViT-H.
    """
    with torch.device("meta"):
        model = untrained(recipe, stage).to("meta")  # constants are on the CPU even so
    with watched(model) as seen, FlopCounterMode(display=False) as counter:
        forward_once(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops = float((1 + BACKWARD) * counter.get_total_flops())
    return DryRun(stage, parameters(model), trained, flops, sum(seen), getattr(recipe, stage).run)


def rough_cost(recipe: Recipe, stage: str) -> float:
    """About how many operations a stage takes from start to end, by its layers alone, on the CPU.

    Neither PyTorch's counter nor the meta device: either loads its compiler, which takes longer than all of this.
    """
    with torch.random.fork_rng(devices=[]):
        model = untrained(recipe, stage)
    counted: list[float] = []

    def note(layer: nn.Linear | nn.Conv2d, given: Any, out: Tensor) -> None:
        counted.append(2.0 * layer.weight.numel() * out.numel() / layer.weight.shape[0])

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        forward_once(model, "cpu")
    return (1 + BACKWARD) * sum(counted) * float(getattr(recipe, stage).run.images)


def parameters(model: nn.Module) -> int:
    """How many numbers a model holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def countable(recipe: Recipe) -> tuple[str, ...]:
    """The stages that are trained: a published CLIP is only read."""
    return tuple(stage for stage in recipe.stages if not (stage == "clip" and recipe.clip.encoder))


# Models as training would build them


def untrained(recipe: Recipe, stage: str) -> nn.Module:
    """The model of a stage, with what follows from the stages before it filled in."""
    builders: Mapping[str, Callable[[Recipe], nn.Module]] = {
        "clip": lambda whole: CLIP(whole.clip.config),
        "prior": _prior,
        "prior_ar": _prior_ar,
        "draft": _draft,
        "decoder": _decoder,
        "decoder_inpaint": _inpaint,
        "upsampler": lambda whole: _upsampler(whole, "upsampler"),
        "upsampler_2": lambda whole: _upsampler(whole, "upsampler_2"),
    }
    if stage not in builders:
        raise UsageError(f"a dry run knows {', '.join(builders)}, got {stage!r}")
    return builders[stage](recipe)


def _prior(recipe: Recipe) -> nn.Module:
    stage, dim = recipe.prior, _dim(recipe)
    text = _text(stage.caption, stage.text, recipe.clip)
    filled = {"dim": dim, "caption": text, "space": _space(dim, _width(recipe))}
    return _frozen(Prior(config=stage.config.model_copy(update=filled)), stage.caption)


def _prior_ar(recipe: Recipe) -> nn.Module:
    stage, dim = recipe.prior_ar, _dim(recipe)
    assert stage is not None
    text = _text(stage.caption, stage.text, recipe.clip)
    filled = {"dim": dim, "caption": text, "space": _space(dim, min(stage.directions, dim))}
    return _frozen(AutoregressivePrior(stage.config.model_copy(update=filled)), stage.caption)


def _draft(recipe: Recipe) -> nn.Module:
    assert recipe.draft is not None
    return Draft(recipe.draft.config.model_copy(update={"z_dim": _seen(recipe)}))


def _decoder(recipe: Recipe) -> Decoder:
    stage = recipe.decoder
    text = _text(stage.caption, stage.text, recipe.clip)
    width = _seen(recipe)
    sizes = {"z_dim": width, "text_dim": text.width if text else 0, "low_res_channels": RGB if recipe.draft else 0}
    draft = recipe.draft.config.model_copy(update={"z_dim": width}) if recipe.draft else None
    filled = {"unet": stage.config.unet.model_copy(update=sizes), "caption": text, "draft": draft}
    model = _frozen(Decoder(config=stage.config.model_copy(update=filled)), stage.caption)
    if model.draft is not None:
        model.draft.requires_grad_(False)
    return model


def _inpaint(recipe: Recipe) -> nn.Module:
    stage = recipe.decoder_inpaint
    assert stage is not None
    model = painter_of(_decoder(recipe), _text(stage.caption, stage.text, recipe.clip))
    return _frozen(model, recipe.decoder.caption or stage.caption)


def _frozen(model: M, reader: str | None) -> M:
    """CLIP's own text transformer is not trained along."""
    if reader == "clip":
        assert isinstance(model.caption, TextTransformer)
        model.caption.requires_grad_(False)
    return model


def _upsampler(recipe: Recipe, name: str) -> nn.Module:
    config = getattr(recipe, name).config
    unet = config.unet.model_copy(update={"z_dim": _width(recipe)}) if config.unet.z_dim else config.unet
    return Upsampler(config=config.model_copy(update={"unet": unet}))


def _text(reader: str | None, sizes: TextConfig, clip: ClipStage) -> TextConfig | None:
    if reader is None:
        return None
    return clip.config.text if reader == "clip" else sizes


def _dim(recipe: Recipe) -> int:
    return PUBLISHED_DIM if recipe.clip.encoder else recipe.clip.config.embed_dim


def _width(recipe: Recipe) -> int:
    return min(_dim(recipe), recipe.directions or _dim(recipe))


def _seen(recipe: Recipe) -> int:
    """How many numbers a decoder sees: captions' embeddings are seen in all directions."""
    return _width(recipe) if recipe.decoder.of == "image" else _dim(recipe)


def _space(dim: int, width: int) -> EmbeddingSpace:
    """A space of so many directions; which ones is of no matter here."""
    rows = tuple(tuple(float(k == row) for k in range(dim)) for row in range(width))
    return EmbeddingSpace(dim=dim, basis=rows if width < dim else None)


# One row through a network


def forward_once(model: Any, device: str = "meta") -> None:
    """One row of the shapes that a model is trained on, with a caption as long as the context."""

    def empty(*shape: int) -> Tensor:
        return torch.zeros(1, *shape, dtype=torch.float32, device=device)

    words = _words(model.caption, device) if getattr(model, "caption", None) is not None else {}
    if model.kind == "clip":
        model.vision(empty(3, model.image_size, model.image_size))
        model.text.states(_tokens(model.config.text, device))
    elif model.kind == "prior":
        model.network(empty(model.config.dim), empty(model.space.width), empty(model.config.width), **words)
    elif model.kind == "autoregressive_prior":
        dot = torch.zeros(1, dtype=torch.long, device=device)
        prefix = model.network.prefix(empty(model.config.dim), dot, words.get("states"))
        model.network(prefix, empty(model.components))
    elif model.kind == "draft":
        model(empty(model.config.z_dim))
    else:
        unet = model.config.unet
        size = getattr(model.config, "crop", None) or model.config.image_size
        channels = {"low_res": unet.low_res_channels, "known": unet.known_channels}
        pictures = {name: empty(count, size, size) for name, count in channels.items() if count}
        z = empty(unet.z_dim) if unet.z_dim else None
        model.network(empty(3, size, size), z, empty(unet.t_dim), **pictures, **words)


def _tokens(text: TextConfig, device: str) -> Tensor:
    return torch.zeros(1, text.context_length, dtype=torch.long, device=device)


def _words(text: TextTransformer, device: str) -> dict[str, Tensor]:
    tokens = _tokens(text.config, device)
    return {"states": text.states(tokens), "valid": torch.ones(tokens.shape, dtype=torch.bool, device=device)}


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


# Telling


def table(runs: Mapping[str, DryRun], stated: Mapping[str, str], hardware: str, devices: int) -> str:
    """Markdown, one row a stage. runs: by the name that is shown; stated: the paper's own numbers of parameters."""
    rate = hardware_rate(hardware)
    if devices < 1:
        raise UsageError(f"devices must be at least 1, got {devices}")
    head = ["", "parameters", *(["in the paper"] if stated else []), "FLOPs a picture", "pictures", "batch"]
    head += ["GiB for 1 picture", "GiB for 32", f"days on {devices} {hardware.lower()}"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, one in runs.items():
        cells = [name, f"{one.parameters:,}", *([stated.get(name, "–")] if stated else []), f"{one.flops:.3g}"]
        cells += [f"{one.run.images:,}", f"{one.run.batch:,}"]
        cells += [f"{one.batch_bytes(count) / 2**30:.1f}" for count in (1, 32)]
        lines.append("| " + " | ".join([*cells, _days(one.days(rate, devices))]) + " |")
    return "\n".join(lines)


def _days(days: float) -> str:
    return f"{days:,.0f}" if days >= 10 else f"{days:.2g}"
