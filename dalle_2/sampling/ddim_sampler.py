"""DDIM (Song, Meng & Ermon 2021): noise to data in few steps; eta = 0 is deterministic, eta = 1 is DDPM."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.spacing import Spacing, check_timesteps, spaced, walk

Noise = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One step done: number `index` of `total` (from 0), from x_t at t to x_s at s by way of the guess x_0.

    s = -1 is clean data, so the last x_s is the result. x_0 is what a preview shows.
    """

    index: int
    total: int
    t: int
    s: int
    x_t: Float[Tensor, "b *shape"]
    x_0: Float[Tensor, "b *shape"]
    x_s: Float[Tensor, "b *shape"]


@runtime_checkable
class DiffusionModel(Protocol):
    """What `DDIMSampler.sample` asks of a model: its noise table, and a denoiser for a condition.

    It may also have `spacing`, the spacing of steps that it was made for, and `kind`, the name of its stream
    of noise.
    """

    noise_scheduler: NoiseScheduler

    @property
    def denoiser(self) -> Callable[..., Denoiser]: ...


class DDIMSampler:
    """Samples with a noise table. Holds no state of a run: one sampler may serve many at a time."""

    def __init__(self, noise_scheduler: NoiseScheduler) -> None:
        self.noise_scheduler = noise_scheduler

    def sample(
        self,
        model: DiffusionModel,
        z_cond: Float[Tensor, "b *condition"],
        output_shape: Sequence[int],
        steps: int,
        *,
        eta: float = 0.0,
        spacing: Spacing | None = None,
        start: Float[Tensor, "b *shape"] | None = None,
        seeds: Sequence[int] | None = None,
        generators: Sequence[torch.Generator] | None = None,
        guidance: float | Float[Tensor, "b"] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """The whole way from noise to data: float32 of `output_shape`, (B, ...), on the device of z_cond.

        eta: 0 ... 1. spacing: by default the model's own, else trailing. start: x_T, by default drawn. seeds,
        generators: one a row, for x_T and the noise of eta > 0; by default new seeds from PyTorch's global
        generator. guidance: handed to `model.denoiser(z_cond, guidance=...)` where given. on_step: called
        after every step.

        Raises UsageError for a model with another noise table, steps outside 1 ... T, eta outside [0, 1], and
        rows that don't fit z_cond.
        """
        self._check_table(model)
        _check_rows(z_cond, output_shape, start)
        noise = _noise(len(z_cond), getattr(model, "kind", "sample"), seeds, generators)
        options: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
        own: Spacing = getattr(model, "spacing", "trailing")
        _check_eta(eta)
        timesteps = spaced(self.noise_scheduler.T, steps, spacing or own)
        x = noise.normal(output_shape) if start is None else start
        x = x.to(z_cond.device, torch.float32)
        denoiser = model.denoiser(z_cond, **options)
        for step in self.steps(denoiser, x, steps, eta=eta, noise=noise, timesteps=timesteps):
            x = step.x_s
            if on_step is not None:
                on_step(step)
        return x

    def steps(
        self,
        denoiser: Denoiser,
        x_T: Float[Tensor, "b *shape"],
        steps: int,
        *,
        eta: float = 0.0,
        spacing: Spacing = "trailing",
        noise: Noise | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> Iterator[Step]:
        """Yields each step once it is done; the caller shows progress, previews, or stops.

        x_T: the start, noised as at the first timestep. noise: shape -> standard normal tensor, such as a
        `PictureNoise`; needed where eta > 0. timesteps: `steps` falling timesteps in place of a spacing,
        where the first may lie below T-1 to start from a picture noised half-way.

        The walk is in x_T's dtype, at least float32. Arguments are checked at the call, before the first
        step.

        Raises UsageError for steps outside 1 ... T, eta outside [0, 1], eta > 0 without noise, and bad
        timesteps.
        """
        _check_eta(eta)
        T = self.noise_scheduler.T
        rows = spaced(T, steps, spacing) if timesteps is None else check_timesteps(T, timesteps)
        if len(rows) != steps:
            raise UsageError(f"got {len(rows)} timesteps for {steps} steps; give one a step")
        if eta > 0 and noise is None:
            raise UsageError(f"eta = {eta} adds noise at every step; pass noise=PictureNoise(seeds, stage)")
        x = x_T.to(torch.promote_types(x_T.dtype, torch.float32))
        return self._walk(denoiser, x, walk(rows), eta, noise)

    def _walk(
        self, denoiser: Denoiser, x: Tensor, pairs: list[tuple[int, int]], eta: float, noise: Noise | None
    ) -> Iterator[Step]:
        for index, (t, s) in enumerate(pairs):
            with torch.no_grad():  # never held across a yield, where it would leak into the caller
                x_0 = denoiser(x, torch.full((len(x),), t, device=x.device)).x_0
                x_s = self._step(x, x_0, t, s, eta, noise)
            yield Step(index, len(pairs), t, s, x, x_0, x_s)
            x = x_s

    def _step(self, x_t: Tensor, x_0: Tensor, t: int, s: int, eta: float, noise: Noise | None) -> Tensor:
        """Song et al. 2021, eq. 12, with eps = (x_t - sqrt(a_t) x_0) / sqrt(1 - a_t), as x_0 implies.

        Reading eps off x_0 keeps x_t and x_0 consistent after clipping. Its two factors are gathered in
        float64, since the two terms alone nearly cancel at the clean end.
        """
        a_t, a_s = self.noise_scheduler.alpha_bar_at(torch.tensor([t, s])).tolist()
        sigma = eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))  # eq. 16
        x_t_factor = math.sqrt(max(1 - a_s - sigma**2, 0.0) / (1 - a_t))
        x_0_factor = math.sqrt(a_s) - x_t_factor * math.sqrt(a_t)
        x_s = x_0_factor * x_0 + x_t_factor * x_t
        if noise is None or sigma == 0:
            return x_s
        return x_s + sigma * noise(tuple(x_t.shape)).to(x_t)

    def _check_table(self, model: DiffusionModel) -> None:
        own, its = self.noise_scheduler, model.noise_scheduler
        if not own.same_table(its):
            raise UsageError(
                f"the sampler's noise table ({own.described}) isn't the one the model was trained with "
                f"({its.described}); build the sampler as DDIMSampler(model.noise_scheduler)"
            )


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


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must lie in [0, 1], where 0 is deterministic and 1 is DDPM, got {eta}")


def _check_rows(z_cond: Tensor, output_shape: Sequence[int], start: Tensor | None) -> None:
    shape = tuple(output_shape)
    if not shape or shape[0] != len(z_cond):
        raise UsageError(f"output_shape {shape} must begin with the {len(z_cond)} rows of z_cond")
    if start is not None and tuple(start.shape) != shape:
        raise UsageError(f"start has shape {tuple(start.shape)}, expected output_shape {shape}")
