"""What all samplers share: from a model, or a bare denoiser, to a walk that yields its steps.

A sampler of its own supplies `_walk`; `samplers.py` is the table of those that come with the package.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoised, Denoiser
from dalle_2.sampling.grid import grid
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.noise_scheduler import NoiseScheduler, timesteps_of
from dalle_2.sampling.spacing import Spacing, check_timesteps, walk
from dalle_2.scalars import plain_numbers

Noise = Callable[[Sequence[int]], Tensor]
Pairs = Sequence[tuple[float, float]]  # (t, s) from each timestep to the next
Move = tuple[Tensor, Tensor]  # (x_0, x_s): the guess, and where it leads


@dataclass(frozen=True, eq=False)
class Step:
    """One step done: number `index` of `total` (from 0), from x_t at t to x_s at s by way of the guess x_0.

    s = -1 is clean data, so the last x_s is the result. x_0 is what a preview shows.
    """

    index: int
    total: int
    t: float
    s: float
    x_t: Float[Tensor, "b *shape"]
    x_0: Float[Tensor, "b *shape"]
    x_s: Float[Tensor, "b *shape"]


@runtime_checkable
class HasNoiseTable(Protocol):
    """A model, as far as the choice of a sampler goes."""

    noise_scheduler: NoiseScheduler


@runtime_checkable
class DiffusionModel(HasNoiseTable, Protocol):
    """What `Sampler.sample` asks of a model: its noise table, and a denoiser for a condition.

    It may also have `spacing`, the spacing of steps that it was made for; `kind`, the name of its stream of
    noise; and `eps_mean_square`, the table behind Analytic-DPM's variance (`mean_squares.py`).
    """

    @property
    def denoiser(self) -> Callable[..., Denoiser]: ...


class Sampler(ABC):
    """Samples with a noise table. Holds no state of a run: one sampler may serve many at a time.

    name: as in the table of samplers. calls: of the network a step, at most. draws_noise: whether its steps
    add noise whatever eta is. takes_eta: whether eta may be more than 0.
    """

    name: str = ""
    calls: int = 1
    draws_noise: bool = False
    takes_eta: bool = False

    def __init__(self, noise_scheduler: NoiseScheduler) -> None:
        self.noise_scheduler = noise_scheduler

    @plain_numbers
    def sample(
        self,
        model: DiffusionModel | Any,
        z_cond: Shaped[Tensor, "b *condition"] | Any,
        output_shape: Sequence[int] | Any,
        steps: int | Any,
        eta: float = 0.0,
        *,
        spacing: Spacing | None = None,
        start: Float[Tensor, "b *shape"] | None = None,
        timesteps: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        generators: Sequence[torch.Generator] | None = None,
        guidance: float | Float[Tensor, "b"] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """The whole way from noise to data: float32 of `output_shape`, (B, ...), on the device of z_cond.

        eta: 0 ... 1, above 0 only where the sampler takes it. spacing: by default the model's own, else
        trailing. start: x_T, by default drawn. timesteps: falling ones in place of `steps` with a spacing,
        for a start noised half-way. seeds, generators: one a row, for x_T and the noise of the steps; by
        default new seeds from PyTorch's global generator. guidance: handed to
        `model.denoiser(z_cond, guidance=...)` where given. on_step: called after every step.

        Raises UsageError for a bare network and for arguments in another order, for a model with another noise
        table, steps outside 1 ... T, an eta that the sampler doesn't take, rows that don't fit z_cond, and a
        model without what the sampler needs of it.
        """
        _check_call(model, z_cond, output_shape, steps)
        self.check(model, eta)
        _check_rows(z_cond, output_shape, start)
        noise = _noise(len(z_cond), getattr(model, "kind", "sample"), seeds, generators)
        options: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
        own: Spacing = getattr(model, "spacing", "trailing")
        if timesteps is None:
            timesteps = grid(self.noise_scheduler, steps, spacing or own)
        x = noise.normal(output_shape) if start is None else start
        x = x.to(z_cond.device, torch.float32)
        denoiser = model.denoiser(z_cond, **options)
        walk = self.fitted(model)
        walked = walk.steps(denoiser, x, len(timesteps), eta=eta, noise=noise, timesteps=timesteps)
        for step in walked:
            x = step.x_s
            if on_step is not None:
                on_step(step)
        return x

    @plain_numbers
    def steps(
        self,
        denoiser: Denoiser,
        x_T: Float[Tensor, "b *shape"],
        steps: int,
        *,
        eta: float = 0.0,
        spacing: Spacing = "trailing",
        noise: Noise | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> Iterator[Step]:
        """Yields each step once it is done; the caller shows progress, previews, or stops.

        x_T: the start, noised as at the first timestep. noise: shape -> standard normal tensor, such as a
        `PictureNoise`; needed where eta > 0 or the sampler draws noise. timesteps: `steps` falling timesteps
        in place of a spacing, whole or real-valued, where the first may lie below T-1 to start from a picture
        noised half-way.

        The walk is in x_T's dtype, at least float32. Arguments are checked at the call, before the first
        step.

        Raises UsageError for steps outside 1 ... T, an eta that the sampler doesn't take, missing noise, and
        bad timesteps.
        """
        self._check_eta(eta)
        self._check_ready("model")
        scheduler = self.noise_scheduler
        rows = grid(scheduler, steps, spacing) if timesteps is None else check_timesteps(scheduler.T, timesteps)
        if len(rows) != steps:
            raise UsageError(f"got {len(rows)} timesteps for {steps} steps; give one a step")
        if noise is None and (eta > 0 or self.draws_noise):
            reason = f"eta = {eta}" if eta > 0 else self.name
            raise UsageError(f"{reason} adds noise at every step; pass noise=PictureNoise(seeds, stage)")
        x = x_T.to(torch.promote_types(x_T.dtype, torch.float32))
        return self._steps(denoiser, x, walk(rows), eta, noise)

    def check(self, model: HasNoiseTable, eta: float = 0.0) -> None:
        """Raises UsageError for a model or an eta that `sample` would refuse."""
        own, its = self.noise_scheduler, model.noise_scheduler
        if not own.same_table(its):
            raise UsageError(
                f"the sampler's noise table ({own.described}) isn't the one the model was trained with "
                f"({its.described}); build the sampler as {type(self).__name__}(model.noise_scheduler)"
            )
        self._check_eta(eta)
        self.fitted(model)._check_ready(getattr(model, "kind", "model"))

    def fitted(self, model: HasNoiseTable) -> Self:
        """The sampler with what it needs to know of a model; most need nothing."""
        return self

    @abstractmethod
    def _walk(self, denoiser: Denoiser, x: Tensor, pairs: Pairs, eta: float, noise: Noise | None) -> Iterator[Move]:
        """Yields the guess x_0 and the next x for each pair, from x at the first t; gradients are off."""

    def _steps(self, denoiser: Denoiser, x: Tensor, pairs: Pairs, eta: float, noise: Noise | None) -> Iterator[Step]:
        moves = self._walk(denoiser, x, pairs, eta, noise)
        for index, (t, s) in enumerate(pairs):
            with torch.no_grad():  # never held across a yield, where it would leak into the caller
                x_0, x_s = next(moves)
            yield Step(index, len(pairs), t, s, x, x_0, x_s)
            x = x_s

    def _check_eta(self, eta: float) -> None:
        if not 0 <= eta <= 1:
            raise UsageError(f"eta must lie in [0, 1], where 0 is deterministic and 1 is DDPM, got {eta}")
        if eta > 0 and not self.takes_eta:
            raise UsageError(f"the sampler {self.name} takes no eta, got {eta}: leave it at 0, or use ddim")

    def _check_ready(self, stage: str) -> None:
        """Raises UsageError, naming the stage, where something is missing that only a model can give."""
        return None


def guess(denoiser: Denoiser, x: Float[Tensor, "b *shape"], t: float) -> Denoised:
    """The denoiser's answer with every row at timestep t."""
    return denoiser(x, timesteps_of(t, x))


def _noise(
    rows: int, stage: str, seeds: Sequence[int] | None, generators: Sequence[torch.Generator] | None
) -> PictureNoise:
    if seeds is not None and generators is not None:
        raise UsageError("got both seeds and generators; give one of them, one a row")
    given = seeds if generators is None else generators
    if given is not None and len(given) != rows:
        raise UsageError(f"got {len(given)} seeds or generators for {rows} rows; give one a row")
    if generators is not None:
        return PictureNoise.from_generators(generators)
    return PictureNoise.fresh(rows, stage) if seeds is None else PictureNoise(seeds, stage)


def _check_call(model: Any, z_cond: Any, output_shape: Any, steps: Any) -> None:
    """Refuses what is no such argument at all, naming the order they come in."""
    if isinstance(model, nn.Module) and not isinstance(model, DiffusionModel):
        raise UsageError(
            f"a {type(model).__name__} is a bare network, which says neither what it predicts nor at which noise: "
            "give a Prior or Decoder around it, or anything with a noise_scheduler and denoiser(z_cond)"
        )
    whole = isinstance(output_shape, Sequence) and all(hasattr(side, "__index__") for side in output_shape)
    for name, given, right, wanted in (
        ("model", model, isinstance(model, DiffusionModel), "a Prior, a Decoder or the like"),
        ("z_cond", z_cond, isinstance(z_cond, Tensor), "a tensor of a row for each result"),
        ("output_shape", output_shape, whole, "a tuple such as (2, 512)"),
        ("steps", steps, hasattr(steps, "__index__") and not isinstance(steps, Tensor), "a whole number"),
    ):
        if not right:
            raise UsageError(
                f"{name} must be {wanted}, got a {type(given).__name__}: "
                "the order is sample(model, z_cond, output_shape, steps)"
            )


def _check_rows(z_cond: Tensor, output_shape: Sequence[int], start: Tensor | None) -> None:
    shape = tuple(output_shape)
    if not shape or shape[0] != len(z_cond):
        raise UsageError(f"output_shape {shape} must begin with the {len(z_cond)} rows of z_cond")
    if start is not None and tuple(start.shape) != shape:
        raise UsageError(f"start has shape {tuple(start.shape)}, expected output_shape {shape}")
