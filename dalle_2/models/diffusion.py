"""What every diffusion process here shares: noising, the training target, the loss and the way to a denoiser."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.config import Settings, parse
from dalle_2.errors import UsageError
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.hybrid_loss import VARIATIONAL_WEIGHT, variational_bound
from dalle_2.models.precision import MixedPrecision
from dalle_2.models.preconditioning import Preconditioning
from dalle_2.models.timestep_embedding import TimestepEmbedder
from dalle_2.sampling.denoiser import Denoised, Denoiser, Target, convert, to_denoiser
from dalle_2.sampling.grid import grid
from dalle_2.sampling.guidance import Condition, ConditionalDenoiser, Threshold, Weight, guide, threshold
from dalle_2.sampling.noise import PictureNoise, normal, uniform, whole_numbers
from dalle_2.sampling.noise_scheduler import NoiseScheduler, timesteps_of
from dalle_2.sampling.spacing import Spacing

Batch = dict[str, Tensor]
C = TypeVar("C", bound="DiffusionConfig")


class DiffusionConfig(Settings):
    """The noise a process was trained under, what its network predicts, and how it is sampled by default."""

    T: int = Field(default=1000, ge=1, le=bounds.TIMESTEPS)
    schedule: Literal["cosine", "linear"] = "cosine"
    target: Target = "x_0"
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of training rows whose condition is replaced by the null condition (classifier-free guidance)."""
    steps: int = Field(default=25, ge=1, le=bounds.TIMESTEPS)
    guidance: float = Field(default=1.0, ge=0, le=bounds.FACTOR)
    spacing: Spacing | None = None
    """None: trailing; leading where the network predicts noise, see `Diffusion.spacing`."""
    clip: float | None = Field(default=None, gt=0, le=bounds.FACTOR)
    """Guesses of the clean data are kept in [-clip, clip] while sampling, as `threshold` says."""
    threshold: Threshold = "static"
    sinusoid: int = Field(default=128, ge=2, multiple_of=2, le=bounds.WIDTH)
    """Numbers that a timestep is encoded in before the network learns of it."""
    eps_mean_square: tuple[float, ...] | None = Field(default=None, repr=False, max_length=bounds.TIMESTEPS)
    """Mean square of the predicted noise, one a timestep: what Analytic-DPM's variance is made of (Bao et al. 2022)."""
    learned_variance: bool = False
    """Whether the network also says how uncertain each step is (Nichol & Dhariwal 2021, eq. 15)."""
    sigma_data: float | None = Field(default=None, gt=0, le=bounds.FACTOR)
    """Standard deviation of clean data around their mean, as the network sees them: its answer is added to what x_t
    says, see `preconditioning.py`. None: the answer is the target itself, as in published weights."""

    @model_validator(mode="after")
    def _one_mean_square_a_timestep(self) -> Self:
        if self.eps_mean_square is not None and len(self.eps_mean_square) != self.T:
            raise ValueError(f"eps_mean_square has {len(self.eps_mean_square)} numbers for T = {self.T}: give one each")
        return self


class Diffusion(MixedPrecision):
    """A noise table, a timestep embedder and a network; subclasses add what the network is conditioned on.

    eps_mean_square: the table that sampling with Analytic-DPM's variance needs, where somebody has estimated it.
    """

    eps_mean_square: Float[Tensor, "T"] | None = None

    def __init__(self, config: DiffusionConfig, t_dim: int) -> None:
        super().__init__()
        self.settings = config
        self.noise_scheduler = NoiseScheduler(config.T, schedule=config.schedule)
        self.time = time_embedder(config, t_dim, self.noise_scheduler)
        self.precondition = preconditioning(config)
        self.target: Target = config.target
        if config.eps_mean_square is not None:
            self.eps_mean_square = torch.tensor(config.eps_mean_square, dtype=torch.float64, device="cpu")

    @property
    def spacing(self) -> Spacing:
        """Which timesteps are visited unless a call says otherwise.

        At T-1 a cosine table leaves no signal. What noise alone says of clean data there is its own error divided by
        nearly nothing, and a long first step would carry that on: so a network that predicts noise starts below.
        """
        if self.settings.spacing is not None:
            return self.settings.spacing
        return "leading" if self.target == "eps" else "trailing"

    @property
    def default_steps(self) -> int:
        """The settings' number of steps, or all there are where the noise table is shorter."""
        return min(self.settings.steps, self.noise_scheduler.T)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def timed(self, t_emb: Tensor | float, rows: int) -> Float[Tensor, "b e"]:
        """t_emb as it was given, or that of timesteps given in its place: one for all rows, (B,) or (B, 1).

        Raises UsageError for other shapes, and for timesteps outside 0 ... T-1.
        """
        given = t_emb if isinstance(t_emb, Tensor) else torch.tensor(t_emb, dtype=torch.float32, device="cpu")
        given = given.to(self.device)
        if given.ndim == 2 and given.shape[1] == self.time.dim and len(given) in (1, rows):
            return given.expand(rows, -1)
        if given.ndim > 2 or (given.ndim == 2 and given.shape[1] != 1) or given.numel() not in (1, rows):
            raise UsageError(
                f"t_emb must be ({rows}, {self.time.dim}), as time(t) gives it, or timesteps t of shape ({rows},), "
                f"got {tuple(given.shape)}"
            )
        self.noise_scheduler.check(given)
        return self._embedded(given.reshape(-1).expand(rows))

    def _embedded(self, t: Shaped[Tensor, "b"]) -> Float[Tensor, "b e"]:
        return self.time(t)

    def completed(
        self,
        answer: Float[Tensor, "b *answered"],
        x_t: Float[Tensor, "b *shape"],
        t_emb: Float[Tensor, "b e"],
        mean: Float[Tensor, "b *shape"] | None = None,
    ) -> Float[Tensor, "b *answered"]:
        """The target, and the learned variance where there is one, that the network's answer means: the one way from
        a network to `forward`, `loss` and `denoiser`. mean: of clean data, where something is known of it."""
        return answer if self.precondition is None else self.precondition(answer, x_t, t_emb, mean)

    def draw(
        self, x_0: Float[Tensor, "b *shape"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b *shape"], Int[Tensor, "b"], Float[Tensor, "b *shape"]]:
        """Noises clean data at uniform timesteps: `(x_t, t, eps)` (DDPM, algorithm 1). The generator is a CPU one."""
        t = whole_numbers(self.noise_scheduler.T, (len(x_0),), generator).to(x_0.device)
        eps = normal(x_0.shape, generator).to(x_0)
        return self.noise_scheduler.add_noise(x_0, eps, t), t, eps

    def noised_start(
        self, x_0: Float[Tensor, "b *shape"], strength: float, steps: int, noise: PictureNoise
    ) -> tuple[Float[Tensor, "b *shape"], tuple[float, ...]]:
        """Clean data under `strength` of the noise's way, and the timesteps of a walk of `steps` that are left to take.

        Raises UsageError where none is left.
        """
        T = self.noise_scheduler.T
        rows = tuple(t for t in grid(self.noise_scheduler, steps, self.spacing) if t + 1 <= strength * T)
        if not rows:
            raise UsageError(f"strength {strength} leaves none of {steps} steps: take more steps, or more strength")
        x_0 = x_0.to(torch.promote_types(x_0.dtype, torch.float32))
        t = timesteps_of(rows[0], x_0)
        return self.noise_scheduler.add_noise(x_0, noise(x_0.shape).to(x_0), t), rows

    def draw_dropped(self, rows: int, share: float, generator: torch.Generator) -> Bool[Tensor, "{rows}"]:
        """Which rows lose their condition."""
        return uniform(rows, generator) < share

    def wanted(
        self, x_t: Float[Tensor, "b *shape"], t: Int[Tensor, "b"], batch: Batch
    ) -> Float[Tensor, "b *shape"]:
        """What the network should have said: noise, clean data or velocity, from whichever the batch carries."""
        if self.target in batch:
            return batch[self.target]
        source: Target = "x_0" if "x_0" in batch else "eps"
        require(batch, source)
        return convert(batch[source], x_t, t, self.noise_scheduler, source=source, to=self.target)

    def guided(
        self,
        predict: Callable[..., Tensor],
        conditions: Sequence[Condition],
        weights: Sequence[Weight],
        thresholding: Threshold | None = None,
        *,
        around: Callable[[ConditionalDenoiser], ConditionalDenoiser] | None = None,
        max_rows: int | None = None,
    ) -> Denoiser:
        """The denoiser of `predict(x_t, t, **condition)`, guided as `guide` does it and after that kept within `clip`.

        thresholding: in place of the settings' own; "none" leaves the guesses as they are, which inversion needs.
        around: what goes round the network inside the guidance, such as tiling. max_rows: see `guide`.
        """
        learned = self.settings.learned_variance

        def network(x_t: Tensor, t: Tensor, condition: Condition) -> Denoised:
            denoise = to_denoiser(
                lambda x, s: predict(x, s, **condition), self.noise_scheduler, self.target, learned_variance=learned
            )
            return denoise(x_t, t)

        clip, mode = self.settings.clip, thresholding or self.settings.threshold
        guided = guide(network if around is None else around(network), conditions, weights, max_rows=max_rows)
        return threshold(guided, mode, limits=(-clip, clip)) if clip else guided

    def weight(self, guidance: float | None) -> float:
        """The guidance asked for, or the settings' own."""
        return self.settings.guidance if guidance is None else guidance

    def mse(self, prediction: Float[Tensor, "b *shape"], wanted: Float[Tensor, "b *shape"]) -> Batch:
        """The plain mean squared error of DDPM's simple loss, always in float32."""
        return {"loss": F.mse_loss(prediction.float(), wanted.float())}

    def denoising_loss(self, prediction: Float[Tensor, "b c *shape"], x_t: Tensor, batch: Batch) -> Batch:
        """The simple loss, and where the variance is learned the hybrid of it and the variational bound.

        The bound teaches the variance alone (Nichol & Dhariwal 2021, eq. 16). It needs `x_0` in the batch.
        """
        t = batch["t"]
        wanted = self.wanted(x_t, t, batch)
        if not self.settings.learned_variance:
            return self.mse(prediction, wanted)
        require(batch, "x_0")
        with torch.autocast(x_t.device.type, enabled=False):
            raw, variance = prediction.float().chunk(2, dim=1)
            simple = F.mse_loss(raw, wanted.float())
            guess = convert(raw.detach(), x_t.float(), t, self.noise_scheduler, source=self.target, to="x_0")
            bound = variational_bound(batch["x_0"], guess, x_t, (variance + 1) / 2, t, self.noise_scheduler).mean()
        # Of T terms one is drawn: T of them make the bound.
        weight = VARIATIONAL_WEIGHT * self.noise_scheduler.T
        return {"loss": simple + weight * bound, "simple": simple.detach(), "bits": bound.detach()}


def time_embedder(config: DiffusionConfig, t_dim: int, noise_scheduler: NoiseScheduler) -> TimestepEmbedder:
    """One that says how much noise there is, where the network's answer is completed by that."""
    level = None if config.sigma_data is None else noise_scheduler
    return TimestepEmbedder(t_dim, sinusoid=config.sinusoid, noise_scheduler=level)


def preconditioning(config: DiffusionConfig) -> Preconditioning | None:
    """What completes the network's answer, where the settings want it."""
    if config.sigma_data is None:
        return None
    return Preconditioning(config.target, config.sigma_data, variance=config.learned_variance)


def settled(cls: type[C], T: int | None, config: C | None, **changes: Any) -> C:
    """A model's settings from what its constructor was given: all of them as `config`, or those that were named.

    Raises ConfigError for values that can't be, UsageError for some that contradict `config`.
    """
    given = {name: value for name, value in {"T": T, **changes}.items() if value is not None}
    if config is None:
        return parse(cls, given)
    for name, value in given.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"got {name}={value!r} beside a config that says {getattr(config, name)!r}: set it in the config alone"
            )
    return config


class Bound:
    """A process whose further conditions are settled, so that samplers see the one call they know."""

    def __init__(self, model: Diffusion, kind: str, denoiser: Callable[..., Denoiser]) -> None:
        self.kind, self.denoiser = kind, denoiser
        self.noise_scheduler, self.spacing = model.noise_scheduler, model.spacing
        self.eps_mean_square = getattr(model, "eps_mean_square", None)


def require(batch: Batch, *names: str) -> None:
    """Refuses a batch that lacks an entry, naming what came."""
    missing = [name for name in names if name not in batch]
    if missing:
        raise UsageError(f"the batch lacks {', '.join(missing)}; it holds {', '.join(sorted(batch)) or 'nothing'}")


def unit_space(dim: int) -> EmbeddingSpace:
    """L2-normalised embeddings scaled to unit variance per dimension (the paper's factor, there 17.2)."""
    return EmbeddingSpace(dim=dim, scale=math.sqrt(dim))
