"""The one training loop: CLIP, prior, decoder and upsampler are objectives to it, anything with a loss."""

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from dalle_2.errors import Dalle2Error, DataError, UsageError
from dalle_2.models.modes import evaluating
from dalle_2.models.precision import check_learns
from dalle_2.models.wrapped import loss_through, unwrapped
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.sampler import Sampler
from dalle_2.training.batches import Batch, as_batch, fitted, is_noised, micro_batches, rows_of
from dalle_2.training.ema import EMA
from dalle_2.training.identity import check_same_run, identity, stated
from dalle_2.training.interrupt import Stop, ending, stop_on_signals
from dalle_2.training.log import TrainingLog
from dalle_2.training.lost_steps import mention_lost
from dalle_2.training.lr_schedule import LRSchedule
from dalle_2.training.passes import Passes, is_stream
from dalle_2.training.plain import plain
from dalle_2.training.precision import DType, autocast, choose_dtype
from dalle_2.training.preview import sample_grid, shown
from dalle_2.training.progress import Report, Reporter, Silent
from dalle_2.training.rates import reported, scheduled
from dalle_2.training.remote import Mirror
from dalle_2.training.restoring import apart, load_optimiser, load_scaler
from dalle_2.training.state import check_state, load_state, save_state, saved_run
from dalle_2.training.surroundings import undisturbed
from dalle_2.weights.checkpoint import check_tensors, load_tensors
from dalle_2.weights.prefixes import plain_names

ModelType = Literal["clip", "prior", "autoregressive_prior", "draft", "decoder", "upsampler"]

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

    @undisturbed
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
        given, model = model, unwrapped(model)
        check_objective(model, model_type)
        check_learns(model)
        check_table(model, noise_scheduler)
        check_table(model, sampler.noise_scheduler if sampler else None)
        if log_interval < 1:
            raise UsageError(f"log_interval must be at least 1 step, got {log_interval}")
        self.model, self.model_type, self.optimizer = model, model_type, optimizer
        self._given = given  # with what the caller put round it, such as torch.compile
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
        self.images, self.steps, self.seconds = 0, 0, 0.0
        self.skipped, self.lost = 0, 0  # steps that were not finite: in a row by now, and in the whole run
        self.passes = Passes(self.settings.seed)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self._log = TrainingLog(self.save_dir)
        self._tokens: list[str] = []  # of the states that this trainer read, wrote, or could not write to the end

    # What a caller runs

    @property
    def best_model(self) -> nn.Module:
        """The averaged weights where there is an average, else the trained ones."""
        return self.ema.model if self.ema else self.model

    def train(self, num_epochs: int) -> None:
        """Trains for `num_epochs` passes over the dataloader, counted from the first start; saves at the end."""
        before = self.lost
        for epoch_i in range(self.passes.finished(self.dataloader), num_epochs):
            self.train_one_epoch(epoch_i)
        self.save()
        mention_lost(self, before)

    @undisturbed
    def train_one_epoch(self, epoch_i: int) -> None:
        """One pass over the dataloader; after a resume, what is left of pass `epoch_i`."""
        stream = is_stream(self.dataloader)
        batches = self.passes.until_pass(self.dataloader, epoch_i + 1) if stream else self.passes.rest(self.dataloader)
        with stop_on_signals() as stop:
            self._loop(batches, None, stop)

    @undisturbed
    def fit(self, images: int) -> None:
        """Trains until `images` images were seen, over as many passes as that takes; saves at the end."""
        if images <= self.images:
            return
        before = self.lost
        with stop_on_signals() as stop:
            self._loop(self.passes.endless(self.dataloader), images, stop)
        self.save()
        mention_lost(self, before)

    @undisturbed
    def train_step(self, batch: Any) -> float:
        """One optimiser step on a noised batch; returns its loss.

        prior: `{z_t, z_txt, t, eps}`; decoder: `{x_t, z_img, t, x_0}`, of tensors or NumPy's arrays, t a number a row.
        The model is put into training mode. A step whose loss or gradient is not finite changes nothing and is counted;
        more than ten of them in a row raise an error.

        Raises UsageError for a batch that lacks something, entries of other shapes than the model's settings say,
        pictures outside of [-1, 1], and t outside 0 ... T-1.
        """
        batch = self._placed(as_batch(batch))
        if not self.model.training:  # else parts of it may sleep on purpose
            self._given.train()
        return self._step(batch)["loss"]

    def save(self) -> None:
        """Writes the state of the run: model, average, optimiser and clocks.

        Raises UsageError, and leaves the older state, where `save_dir` holds that of another run, and for an optimiser
        whose groups hold what can't be read back.
        """
        self._check_place()
        self._tokens = [*self._tokens[-1:], token := secrets.token_hex(8)]
        save_state(self.save_dir, self._state(), {**self._run(), "token": token})
        self._log.flush()
        self._mirror.upload(self.save_dir)
        self._tokens = [token]

    @undisturbed
    def resume(self) -> bool:
        """Continues from the saved state, if there is one; returns whether there was.

        The optimiser's learning rates are those that it had. Raises UsageError for the state of another run, and
        CheckpointError for one that doesn't fit the model or the optimiser, before anything changes.
        """
        self._mirror.download(self.save_dir)
        state = load_state(self.save_dir)
        if state is not None:
            self._restore(state)
            token = (saved_run(self._mirror.committed()) or {}).get("token")
            self._tokens = [] if token is None else [token]
        return state is not None

    # The loop

    def _loop(self, batches: Iterator[Batch], until: int | None, stop: Stop) -> None:
        """The one long function: draw, step, report, preview, save."""
        self._check_place()
        plain(self.optimizer.state_dict()["param_groups"], "optimizer.param_groups")  # says now what saving would say
        self._given.train()
        self.reporter.start(self.name, self.images, until)
        began, saved = time.monotonic(), time.monotonic()
        try:
            for batch in batches:
                # Noise
                batch = self._placed(batch)
                size = rows_of(batch)
                generator = self._generator()  # for dropout, too
                noised = batch if is_noised(batch) else self.model.noised(batch, generator)  # type: ignore[operator]

                # Learn
                values = self._step(noised, size)
                now = time.monotonic()
                self.seconds, began = self.seconds + now - began, now

                # Tell
                self.reporter.step(Report(self.images, size, values, skipped=self.lost))
                if self.steps % self.log_interval == 0:
                    lost = {"skipped": self.lost} if self.lost else {}
                    self._log.write(self.images, values | lost | {"seconds": self.seconds})
                if self._preview_is_due(size):
                    self._preview(batch)

                # Keep
                if (number := stop()) is not None:
                    self.save()
                    raise ending(number, f"after {self.images:,} images; the state is saved in {self.place}")
                if now - saved > self.settings.save_every:
                    self.save()
                    saved = time.monotonic()
                if until is not None and self.images >= until:
                    return
            if until is not None:
                raise DataError(f"the dataloader ended after {self.images:,} images: each pass must give batches")
        finally:
            self.reporter.close()

    def _step(self, batch: Batch, size: int | None = None) -> dict[str, float]:
        """Gradients over the micro-batches, one update, one move of the average."""
        size = size or rows_of(batch)
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for part, weight in micro_batches(batch, self.settings.accumulate):
            with autocast(self.device, self.dtype):
                losses = loss_through(self._given, part)
            torch.autograd.backward(self._scaler.scale(losses["loss"] * weight))
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + weight * float(value.detach())
        self._scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm or math.inf))
        finite = math.isfinite(totals["loss"]) and math.isfinite(norm)
        if not finite:  # running statistics have moved already
            for buffer, before in buffers:
                buffer.copy_(before)
        with scheduled(self.optimizer, self.settings.lr_schedule.factor(self.images)) as rates:
            self._update(finite, seeking=self._scaler.is_enabled() and math.isfinite(totals["loss"]))
        self.images, self.steps = self.images + size, self.steps + 1
        if self.ema and not self.skipped:
            self.ema.update(self.model, self.images, size)
        return totals | {"grad_norm": norm, **reported(rates)}

    def _update(self, finite: bool, seeking: bool) -> None:
        """Applies the gradients, or leaves the weights as they are and counts.

        seeking: in fp16, where gradients that are too large only say that they were scaled too much.
        """
        if finite:
            self._scaler.step(self.optimizer)
            self.skipped = 0
        else:
            self.skipped += 1
            self.lost += not seeking
        self._scaler.update()
        if self.skipped > MOST_SKIPPED:
            raise Dalle2Error(
                f"the loss of {self.skipped} steps in a row was not finite after {self.images:,} images: "
                f"lower the learning rate ({self.name}.run.lr of a recipe) or train in fp32, in another folder than "
                f"{self.place}, where the last saved state is whole"
            )

    def _generator(self) -> torch.Generator:
        """Noise of this step; dropout draws from the global generator, so that is set beside it."""
        key = ((self.settings.seed << 40) + self.images) % 2**63
        torch.manual_seed(key)
        return torch.Generator().manual_seed(key + 1)

    def _placed(self, batch: Batch) -> Batch:
        """A batch where the model is, in the form that it wants."""
        return fitted(self.model, {name: value.to(self.device) for name, value in batch.items()})

    # Sample grids

    def _preview_is_due(self, size: int) -> bool:
        every = self.settings.preview_every
        drawn = self.preview is not None or (self.sampler is not None and self.model_type in PREVIEWED)
        return bool(drawn and every and self.images // every > (self.images - size) // every)

    def _preview(self, batch: Batch) -> None:
        """The caller's picture, or what the model draws for the batch that it just learned from."""
        model, pairs = self.best_model, shown(self.model, batch) if self.preview is None else batch
        if pairs is None:
            return
        with evaluating(model):
            picture = self.preview(model) if self.preview else sample_grid(model, pairs, self.sampler)
        self._log.picture(self.images, picture)

    # Resuming

    @property
    def place(self) -> str:
        """Where the state of the run is kept: a folder, or an address."""
        return self._mirror.url or str(self.save_dir)

    def _run(self) -> dict[str, Any]:
        return identity(self.model, self.name, self.model_type, self.settings.seed)

    def _check_place(self) -> None:
        """Refuses to write over the state of another run, or over one that somebody has saved since."""
        there = saved_run(self._mirror.committed())
        if there is None:
            return
        check_same_run(there, self._run(), self.place)
        if self._tokens and there.get("token") not in self._tokens:
            raise UsageError(
                f"another trainer has saved a state in {self.place} since this one did: "
                "give each trainer a save_dir of its own"
            )

    def _state(self) -> dict[str, Any]:
        config: Any = getattr(self.model, "config", None)
        return {
            "model_type": self.model_type,
            "run": self._run(),
            "config": config.model_dump(mode="json") if hasattr(config, "model_dump") else None,
            "model": plain_names(self.model.state_dict()),
            "ema": plain_names(self.ema.model.state_dict()) if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_type": type(self.optimizer).__name__,
            "apart": apart(self.model, self.optimizer),
            "scaler": self._scaler.state_dict(),
            "images": self.images,
            "steps": self.steps,
            "passes": {"done": self.passes.done, "rows": self.passes.rows},
            "skipped": self.skipped,
            "lost": self.lost,
            "seconds": self.seconds,
            "seed": self.settings.seed,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        check_state(state, self.place)
        own = self._run()
        there = stated(state, own)
        check_same_run({**there, "settings": {}}, own, self.place)
        if (state["ema"] is None) != (self.ema is None):
            raise UsageError(f"the run in {self.place} differs in whether it averages its weights: use its settings")
        # What doesn't learn is no part of the run: it stays as the caller gave it.
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        weights, average = ({**(state[part] or {}), **plain_names(frozen)} for part in ("model", "ema"))
        check_tensors(self.model, weights, self.save_dir)
        check_same_run(there, own, self.place)
        if state["scaler"]:  # empty where the run was not in fp16 so far
            load_scaler(self._scaler, state["scaler"], self.save_dir)
        beside = apart(self.model, self.optimizer)
        load_optimiser(self.optimizer, beside, state, self.save_dir)
        load_tensors(self.model, weights, self.save_dir)
        if self.ema:
            load_tensors(self.ema.model, average, self.save_dir)
        self._go_on(state)

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self.images, self.steps, self.seconds = state["images"], state["steps"], state["seconds"]
        self.skipped = state.get("skipped", 0)
        self.lost = state.get("lost", self.skipped)
        self.passes = Passes(self.settings.seed, **state.get("passes", {}))
        if "passes" not in state:
            self.passes.guess(self.images, self.steps, self.dataloader)


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
