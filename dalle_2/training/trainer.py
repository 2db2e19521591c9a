"""The one training loop: CLIP, prior, decoder and upsampler are objectives to it, anything with a loss."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from dalle_2.errors import CheckpointError, Dalle2Error, DataError, UsageError
from dalle_2.models.modes import evaluating
from dalle_2.models.precision import check_learns
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.sampler import Sampler
from dalle_2.training.ema import EMA
from dalle_2.training.interrupt import stop_on_signals
from dalle_2.training.log import TrainingLog
from dalle_2.training.lr_schedule import LRSchedule
from dalle_2.training.precision import DType, autocast, choose_dtype
from dalle_2.training.preview import sample_grid
from dalle_2.training.progress import Report, Reporter, Silent
from dalle_2.training.remote import Mirror
from dalle_2.training.state import load_state, save_state
from dalle_2.weights.checkpoint import load_tensors

ModelType = Literal["clip", "prior", "autoregressive_prior", "draft", "decoder", "upsampler"]
Batch = dict[str, Tensor]

MOST_SKIPPED = 10
PREVIEWED = ("decoder", "upsampler")
TRANSFORMERS = ("clip", "prior", "autoregressive_prior")


@runtime_checkable
class Objective(Protocol):
    """What the loop asks of a model: clean pairs noised by a generator, and the loss of a noised batch."""

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch: ...
    def loss(self, batch: Batch) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class TrainerSettings:
    """How the loop runs; what is trained and on what are other arguments.

    accumulate: micro-batches a step. clip_norm: the largest norm of a step's gradient, None for any.
    ema_halflife: in images, None for no average. save_every: in seconds. preview_every: in images, 0 for no sample
    grids. Raises UsageError for values that make no sense.
    """

    seed: int = 0
    dtype: DType = "auto"
    accumulate: int = 1
    clip_norm: float | None = 1.0
    lr_schedule: LRSchedule = field(default_factory=LRSchedule)
    ema_halflife: float | None = None
    save_every: float = 120.0
    preview_every: int = 0

    def __post_init__(self) -> None:
        if self.accumulate < 1 or min(self.seed, self.preview_every) < 0:
            raise UsageError(
                "accumulate must be at least 1, seed and preview_every at least 0; "
                f"got {self.accumulate}, {self.seed} and {self.preview_every}"
            )
        for name in ("clip_norm", "ema_halflife", "save_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be above 0, got {value}")


class DALLe2Trainer:
    """Trains one stage.

    model: a Prior, Decoder, Upsampler or CLIP, that is, anything with `noised` and `loss`. model_type: its name.
    dataloader: gives clean pairs as dicts of tensors, an epoch an iteration. One with `at(images)`, as `Batches`, is
    endless and goes on at that image; any other, as PyTorch's DataLoader, is begun again and read as far as it was.
    name: what the reporter calls the run, by default model_type.
    sampler: draws a decoder's or upsampler's sample grids, unless `preview` does: averaged model -> picture.
    save_dir: a folder or a URL ("s3://..."); the state of the run goes there, the log into the folder (of a URL: into
    a temporary one that goes with the trainer). log_interval: steps between two lines of the log. is_aws: see `Mirror`.

    The clock counts images. Noise, timesteps and dropout of a step follow from the seed and that clock, and so does the
    order of a DataLoader that shuffles without a generator of its own, so that a resumed run equals an uninterrupted
    one bit for bit, on the same machine and as many threads.

    Raises UsageError for an unknown model_type or one that isn't the model's, a model without a loss, another noise
    table than the model's in `noise_scheduler` or `sampler`, and settings that contradict each other.
    """

    def __init__(
        self,
        model: nn.Module,
        model_type: str,
        optimizer: torch.optim.Optimizer,
        noise_scheduler: NoiseScheduler | None = None,
        sampler: Sampler | None = None,
        dataloader: Any = None,
        is_aws: bool = False,
        save_dir: str | Path = "trained_models",
        log_interval: int = 50,
        *,
        settings: TrainerSettings | None = None,
        reporter: Reporter | None = None,
        preview: Callable[[nn.Module], Any] | None = None,
        name: str | None = None,
    ) -> None:
        check_objective(model, model_type)
        check_learns(model)
        check_table(model, noise_scheduler)
        check_table(model, sampler.noise_scheduler if sampler else None)
        if log_interval < 1:
            raise UsageError(f"log_interval must be at least 1 step, got {log_interval}")
        self.model, self.model_type, self.optimizer = model, model_type, optimizer
        self.name = name or model_type
        self.noise_scheduler, self.sampler, self.dataloader = noise_scheduler, sampler, dataloader
        self.is_aws, self.log_interval = is_aws, log_interval
        self.settings = settings or TrainerSettings()
        if model_type == "clip" and self.settings.accumulate > 1:
            raise UsageError("CLIP can't accumulate: a micro-batch lacks the others' negatives; set accumulate = 1")
        self.reporter: Reporter = reporter or Silent()
        self.preview = preview
        self._mirror = Mirror.of(save_dir, is_aws=is_aws)
        self.save_dir = self._mirror.folder
        self.device = next(model.parameters()).device
        self.dtype = choose_dtype(self.settings.dtype, self.device, transformer=model_type in TRANSFORMERS)
        self.ema = EMA(model, self.settings.ema_halflife) if self.settings.ema_halflife else None
        self.images, self.steps, self.seconds, self.skipped = 0, 0, 0.0, 0
        self._read = 0  # batches taken from the dataloader, which a caller's own train_step has no part in
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self._log = TrainingLog(self.save_dir)

    # What a caller runs

    @property
    def best_model(self) -> nn.Module:
        """The averaged weights where there is an average, else the trained ones."""
        return self.ema.model if self.ema else self.model

    def train(self, num_epochs: int) -> None:
        """Trains for `num_epochs` passes over the dataloader, counted from the first start; saves at the end."""
        for epoch_i in range(self._passes_done(), num_epochs):
            self.train_one_epoch(epoch_i)
        self.save()

    def train_one_epoch(self, epoch_i: int) -> None:
        """One pass over the dataloader; after a resume, what is left of pass `epoch_i`."""
        if hasattr(self.dataloader, "at"):
            self.fit((epoch_i + 1) * int(self.dataloader.length))
            return
        with stop_on_signals() as stop:
            self._loop(self._rest_of_pass(), None, stop)

    def fit(self, images: int) -> None:
        """Trains until `images` images were seen, over as many passes as that takes; saves at the end."""
        if images <= self.images:
            return
        with stop_on_signals() as stop:
            self._loop(self._endless(), images, stop)
        self.save()

    def train_step(self, batch: Batch) -> float:
        """One optimiser step on a noised batch; returns its loss.

        prior: `{z_t, z_txt, t, eps}`; decoder: `{x_t, z_img, t, x_0}`. The model is put into training mode. A step
        whose loss or gradient is not finite changes nothing and is counted; more than ten of them in a row raise an
        error. Raises UsageError for a batch that lacks something, and for t outside 0 ... T-1.
        """
        batch = self._placed(batch)
        check_timesteps(self.model, batch)
        if not self.model.training:  # else parts of it may sleep on purpose
            self.model.train()
        return self._step(batch)["loss"]

    def save(self) -> None:
        """Writes the state of the run: model, average, optimiser and clocks."""
        save_state(self.save_dir, self._state())
        self._log.flush()
        self._mirror.upload(self.save_dir)

    def resume(self) -> bool:
        """Continues from the saved state, if there is one; returns whether there was."""
        self._mirror.download(self.save_dir)
        state = load_state(self.save_dir)
        if state is not None:
            self._restore(state)
        return state is not None

    # The loop

    def _loop(self, batches: Iterator[Batch], until: int | None, stop: Callable[[], bool]) -> None:
        """The one long function: draw, step, report, preview, save."""
        self.model.train()
        size = 0
        self.reporter.start(self.name, self.images, until)
        began, saved = time.monotonic(), time.monotonic()
        try:
            for batch in batches:
                # Noise
                self._read += 1
                batch = self._placed(batch)
                size = len(next(iter(batch.values())))
                noised = self.model.noised(batch, self._generator())  # type: ignore[operator]

                # Learn
                values = self._step(noised, size)
                now = time.monotonic()
                self.seconds, began = self.seconds + now - began, now

                # Tell
                self.reporter.step(Report(self.images, size, values))
                if self.steps % self.log_interval == 0:
                    self._log.write(self.images, values | {"seconds": self.seconds})
                if self._preview_is_due(size):
                    self._preview(batch)

                # Keep
                if stop():
                    self.save()
                    raise KeyboardInterrupt
                if now - saved > self.settings.save_every:
                    self.save()
                    saved = time.monotonic()
                if until is not None and self.images >= until:
                    return
            if not size or until is not None:
                raise DataError(f"the dataloader ended after {self.images:,} images: each pass must give batches")
        finally:
            self.reporter.close()

    def _step(self, batch: Batch, size: int | None = None) -> dict[str, float]:
        """Gradients over the micro-batches, one update, one move of the average."""
        size = size or len(next(iter(batch.values())))
        self._set_rates()
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for part, weight in micro_batches(batch, self.settings.accumulate):
            with autocast(self.device, self.dtype):
                losses = self.model.loss(part)  # type: ignore[operator]
            self._scaler.scale(losses["loss"] * weight).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + weight * float(value.detach())
        self._scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm or math.inf))
        finite = math.isfinite(totals["loss"]) and math.isfinite(norm)
        if not finite:  # running statistics have moved already
            for buffer, before in buffers:
                buffer.copy_(before)
        self._update(finite)
        self.images, self.steps = self.images + size, self.steps + 1
        if self.ema and not self.skipped:
            self.ema.update(self.model, self.images, size)
        return totals | {"grad_norm": norm}

    def _update(self, finite: bool) -> None:
        """Applies the gradients, or leaves the weights as they are and counts."""
        if finite:
            self._scaler.step(self.optimizer)
            self.skipped = 0
        else:
            self.skipped += 1
        self._scaler.update()
        if self.skipped > MOST_SKIPPED:
            raise Dalle2Error(
                f"the loss of {self.skipped} steps in a row was not finite after {self.images:,} images: "
                "lower the learning rate or train in fp32; the last saved state is whole"
            )

    def _set_rates(self) -> None:
        factor = self.settings.lr_schedule.factor(self.images)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _generator(self) -> torch.Generator:
        """Noise of this step; dropout draws from the global generator, so that is set beside it."""
        key = ((self.settings.seed << 40) + self.images) % 2**63
        torch.manual_seed(key)
        return torch.Generator().manual_seed(key + 1)

    def _placed(self, batch: Any) -> Batch:
        if not isinstance(batch, Mapping):
            raise UsageError(f"a batch must be a dict of tensors, got a {type(batch).__name__}: name its parts")
        return {name: value.to(self.device) for name, value in batch.items() if isinstance(value, Tensor)}

    # Passes over the dataloader

    def _endless(self) -> Iterator[Any]:
        """Batches from the clock's image on, pass after pass; a loader that gives nothing ends it."""
        if hasattr(self.dataloader, "at"):
            yield from self.dataloader.at(self.images)
            return
        before = -1
        while before != self._read:
            before = self._read
            yield from self._rest_of_pass()

    def _rest_of_pass(self) -> Iterator[Any]:
        """What the current pass still has to give, in an order that follows from the seed and where it began."""
        if self.dataloader is None:
            raise UsageError("this trainer has no dataloader: give it one, or call train_step with batches of your own")
        length = self._batches_a_pass()
        taken = self._read % length if length else 0
        torch.manual_seed(((self.settings.seed << 40) + self._read - taken) % 2**63)
        return islice(iter(self.dataloader), taken, None)

    def _passes_done(self) -> int:
        if hasattr(self.dataloader, "at"):
            return self.images // int(self.dataloader.length)
        length = self._batches_a_pass()
        if self._read and not length:
            raise UsageError("epochs of a dataloader without a length can't be counted on: call fit(images) instead")
        return self._read // length if length else 0

    def _batches_a_pass(self) -> int | None:
        """How often the dataloader yields; None where it can't say, and then every pass begins at its start."""
        try:
            return len(self.dataloader)
        except TypeError:
            return None

    # Sample grids

    def _preview_is_due(self, size: int) -> bool:
        every = self.settings.preview_every
        drawn = self.preview is not None or (self.sampler is not None and self.model_type in PREVIEWED)
        return bool(drawn and every and self.images // every > (self.images - size) // every)

    def _preview(self, batch: Batch) -> None:
        """The caller's picture, or what the model draws for the batch that it just learned from."""
        model = self.best_model
        with evaluating(model):
            picture = self.preview(model) if self.preview else sample_grid(model, batch, self.sampler)
        self._log.picture(self.images, picture)

    # Resuming

    def _state(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "images": self.images,
            "steps": self.steps,
            "seconds": self.seconds,
            "seed": self.settings.seed,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["model_type"] != self.model_type or state["seed"] != self.settings.seed:
            raise UsageError(
                f"{self.save_dir} holds the run of a {state['model_type']} with seed {state['seed']}, "
                f"not of a {self.model_type} with seed {self.settings.seed}: choose another folder"
            )
        if (state["ema"] is None) != (self.ema is None):
            raise UsageError(f"the run in {self.save_dir} differs in whether it averages its weights: use its settings")
        # What doesn't learn is no part of the run: it stays as the caller gave it.
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        load_tensors(self.model, {**state["model"], **frozen}, self.save_dir)
        if self.ema:
            load_tensors(self.ema.model, {**state["ema"], **frozen}, self.save_dir)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"the optimiser's state in {self.save_dir} doesn't fit this one: {error}") from None
        if state["scaler"]:  # empty where the run was not in fp16 so far
            self._scaler.load_state_dict(state["scaler"])
        self.images, self.steps, self.seconds = state["images"], state["steps"], state["seconds"]
        self._read = self.steps


def micro_batches(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """The batch in at most `count` parts, each with its share of the rows."""
    size = len(next(iter(batch.values())))
    step = -(-size // count)
    for start in range(0, size, step):
        part = {name: value[start : start + step] for name, value in batch.items()}
        yield part, len(next(iter(part.values()))) / size


def check_objective(model: nn.Module, model_type: str) -> None:
    """Refuses what can't be trained, and a name that isn't the model's own."""
    if model_type not in get_args(ModelType):
        raise UsageError(f"unknown model_type {model_type!r}: choose one of {', '.join(get_args(ModelType))}")
    if not isinstance(model, Objective):
        raise UsageError(f"a {type(model).__name__} can't be trained: it needs the methods `noised` and `loss`")
    if getattr(model, "kind", model_type) != model_type:
        raise UsageError(f"model_type is {model_type!r}, but the model is a {model.kind}: say {model.kind!r}")


def check_table(model: nn.Module, noise_scheduler: NoiseScheduler | None) -> None:
    """Refuses a noise table other than the model's."""
    own = getattr(model, "noise_scheduler", None)
    if noise_scheduler is not None and own is not None and not own.same_table(noise_scheduler):
        raise UsageError(
            f"the trainer was given the noise table {noise_scheduler.described}, "
            f"the model has {own.described}: give the model's own"
        )


def check_timesteps(model: nn.Module, batch: Batch) -> None:
    """Refuses timesteps that the model's noise table lacks, which its embedding would take without a word."""
    own = getattr(model, "noise_scheduler", None)
    if own is not None and "t" in batch:
        own.check(batch["t"])
