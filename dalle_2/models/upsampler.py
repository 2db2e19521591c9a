"""Diffusion super-resolution: a small picture and its CLIP image embedding to a large one."""

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.errors import UsageError
from dalle_2.models.allocation import freed_at_once
from dalle_2.models.decoder import condition, require_eta
from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig
from dalle_2.models.degradation import BSRSettings, degraded
from dalle_2.models.diffusion import (
    Batch,
    Diffusion,
    DiffusionConfig,
    preconditioning,
    require,
    settled,
    time_embedder,
    unit_space,
)
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.precision import buildable, readable
from dalle_2.models.preconditioning import beside_level
from dalle_2.models.rest import at_work, lay_down
from dalle_2.models.timestep_embedding import TimestepEmbedder
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoised, Denoiser
from dalle_2.sampling.noise import PictureNoise, normal, uniform, whole_numbers
from dalle_2.sampling.noise_scheduler import NoiseScheduler, timesteps_of
from dalle_2.sampling.sampler import Sampler, Step
from dalle_2.sampling.tiling import Tiling, tiled
from dalle_2.scalars import plain_numbers

TILES_AT_ONCE = 4  # on a GPU
# Numbers of a map of full size that a call may see: of more pictures together nothing gets faster, and some twelve such
# maps are in memory at a time.
MAP_ON_CPU, MAP_ON_GPU = 2**25, 2**28

SMALL_UNET = DecoderUNetConfig(
    channels=64, multiples=(1, 2, 4), blocks=1, attention=(), middle_attention=False, patch=4, low_res_channels=3
)
PAPER_UNET = DecoderUNetConfig(
    channels=192, multiples=(1, 2, 3, 4), blocks=2, attention=(), middle_attention=False, low_res_channels=3
)


class UpsamplerConfig(DiffusionConfig):
    """Training sees random crops of `crop` pixels a side (the paper's quarter-size patches, section 2.1).

    `degradation`: what corrupts the small picture. "blur" is a Gaussian blur, in half of the rows, whose standard
    deviation is at most `blur` small pixels (the paper's first upsampler); "bsr" is the BSR degradation with the ranges
    of `bsr` (its second). `corruption` is the standard deviation of noise added after either.

    `noise_levels`: with a number here small pictures are noised, too, at one of the levels 0 ... `noise_levels` drawn
    for each row, and the network is told which (Ho et al. 2022, "Cascaded diffusion models", section 4). Level n is
    that of n steps of the noise table, 0 is none. `noise_level` is the one that pictures are sampled at.

    `antialiased`: small pictures are enlarged by the cubic of Pillow and of PyTorch's antialiasing, instead of
    PyTorch's plain one. `last`: a second network of the same shape predicts at timestep 0. Karlo has both.
    """

    clip: float | None = Field(default=1.0, gt=0, le=bounds.FACTOR)
    sigma_data: float | None = Field(default=0.15, gt=0, le=bounds.FACTOR)
    image_size: int = Field(default=256, ge=8, le=bounds.SIDE)
    low_res_size: int = Field(default=64, ge=4, le=bounds.SIDE)
    crop: int | None = Field(default=None, ge=1, le=bounds.SIDE)
    degradation: Literal["blur", "bsr"] = "blur"
    blur: float = Field(default=0.6, ge=0, le=bounds.FACTOR)
    bsr: BSRSettings = BSRSettings()
    corruption: float = Field(default=0.0, ge=0, le=bounds.FACTOR)
    noise_levels: int = Field(default=0, ge=0, le=bounds.TIMESTEPS)
    noise_level: int = Field(default=0, ge=0, le=bounds.TIMESTEPS)
    antialiased: bool = False
    last: bool = False
    unet: DecoderUNetConfig = SMALL_UNET
    space: EmbeddingSpace | None = None

    @model_validator(mode="after")
    def _learns_no_variance(self) -> "UpsamplerConfig":
        if self.learned_variance:
            raise ValueError("an upsampler learns no variance, as in the paper: leave learned_variance off")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "UpsamplerConfig":
        crop = self.crop or self.image_size
        if self.image_size % self.low_res_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of low_res_size {self.low_res_size}")
        for name, size in (("image_size", self.image_size), ("crop", crop)):
            if size % self.unet.factor or size % self.scale:
                raise ValueError(f"{name} {size} must be divisible by {self.unet.factor} and by the scale {self.scale}")
        if crop > self.image_size:
            raise ValueError(f"crop {crop} is larger than image_size {self.image_size}")
        return self

    @model_validator(mode="after")
    def _levels_exist(self) -> "UpsamplerConfig":
        if not self.noise_level <= self.noise_levels <= self.T:
            raise ValueError(
                f"noise_levels must be at most T = {self.T} and noise_level at most noise_levels, "
                f"got {self.noise_levels} and {self.noise_level}"
            )
        return self

    @property
    def scale(self) -> int:
        """How many times larger a side becomes."""
        return self.image_size // self.low_res_size


class Upsampler(Diffusion):
    """Diffusion over large pictures, conditioned on a small one and on its image embedding.

    T, target, image_size, low_res_size, unet: of `UpsamplerConfig`, which has the rest and may be given whole as
    `config`. The U-Net is small unless it is told otherwise; `PAPER_UNET` is one of the paper's size.

    Raises ConfigError for settings that can't be, UsageError for some that contradict `config`.
    """

    kind = "upsampler"

    @plain_numbers
    @buildable
    def __init__(
        self,
        T: int | None = None,
        *,
        target: str | None = None,
        image_size: int | None = None,
        low_res_size: int | None = None,
        unet: DecoderUNetConfig | None = None,
        config: UpsamplerConfig | None = None,
    ) -> None:
        config = settled(
            UpsamplerConfig, T, config, target=target, image_size=image_size, low_res_size=low_res_size, unet=unet
        )
        super().__init__(config, config.unet.t_dim)
        self.config = config
        self.space = (config.space or unit_space(config.unet.z_dim)) if config.unet.z_dim else None
        self.network = DecoderUNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.last = LastStep(config, self.noise_scheduler) if config.last else None
        self.level = TimestepEmbedder(config.unet.t_dim) if config.noise_levels else None

    @classmethod
    def from_config(cls, config: UpsamplerConfig) -> "Upsampler":
        """The untrained upsampler of these settings."""
        return cls(config.T, config=config)

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        low_res: Float[Tensor, "b 3 k k2"],
        z_img: Float[Tensor, "b d"] | None,
        t_emb: Shaped[Tensor, "..."] | float,
    ) -> Float[Tensor, "b 3 h w"]:
        """One denoising step: the prediction for noised large pictures `x_t` above small ones.

        t_emb: (B, t_dim), of `embed`, or the timesteps t themselves, above small pictures without noise.
        """
        t_emb = self.timed(t_emb, len(x_t))
        return self._predict(x_t, self._smooth(low_res, x_t.shape[-2:]), self._seen(z_img, len(x_t)), t_emb)

    def _embedded(self, t: Tensor) -> Float[Tensor, "b e"]:
        return self.embed(t)

    def embed(
        self, t: Float[Tensor, "b"] | Int[Tensor, "b"], level: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b e"]:
        """The embedding of timesteps and, with noise-level conditioning, of the small pictures' levels; None for 0."""
        t_emb = self.time(t)
        if self.level is None:
            return t_emb
        side = self.level(torch.zeros_like(t) if level is None else level)
        return t_emb + (side if self.config.sigma_data is None else beside_level(side))

    def _seen(self, z_img: Tensor | None, rows: int) -> Tensor | None:
        """Embeddings as the network wants them, the null one where none is given; None where it takes none."""
        if self.space is None or self.network.null_z is None:
            return None
        return self.network.null_z.expand(rows, -1) if z_img is None else self.space.to_model(z_img)

    def _smooth(self, low_res: Tensor, size: Sequence[int]) -> Tensor:
        low_res = low_res.to(torch.promote_types(low_res.dtype, torch.float32))
        return enlarge(low_res, size, antialiased=self.config.antialiased)

    def _predict(self, x_t: Tensor, enlarged: Tensor, z: Tensor | None, t_emb: Tensor) -> Tensor:
        """The network adds detail to the enlarged small picture, so that what it must learn is small."""
        answer = self.network(x_t, z, t_emb, low_res=enlarged)
        if self.config.sigma_data is None and self.target == "x_0":
            return answer + enlarged
        return self.completed(answer, x_t, t_emb, mean=enlarged)

    # Training

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Clean pairs `{z_img, image}` to `{x_t, low_res, z_img, t, x_0}` on random crops."""
        require(batch, "z_img", "image")
        batch = readable(batch, self)
        x_0 = random_crop(batch["image"], self.config.crop, self.config.scale, generator)
        x_t, t, eps = self.draw(x_0, generator)
        low_res = self._corrupted(x_0, generator)
        dropped = self.draw_dropped(len(x_0), self.config.drop, generator).to(x_0.device)
        return {
            "x_t": x_t, "low_res": low_res, "z_img": batch["z_img"], "t": t, "x_0": x_0,
            "eps": eps, "dropped": dropped, **self._levelled(low_res, generator),
        }  # fmt: skip

    def _corrupted(self, x_0: Tensor, generator: torch.Generator) -> Tensor:
        """Small pictures, and what those of a decoder may lack: some sharpness, and smooth surfaces."""
        with torch.autocast(x_0.device.type, enabled=False):
            if self.config.degradation == "bsr":
                low_res = degraded(x_0, self.config.scale, self.config.bsr, generator)
            else:
                low_res = self._half_blurred(shrink(x_0, self.config.scale), generator)
        noise = normal(low_res.shape, generator).to(low_res)
        return low_res + self.config.corruption * noise

    def _half_blurred(self, low_res: Tensor, generator: torch.Generator) -> Tensor:
        sigma = self.config.blur * float(uniform((), generator))
        blurred = uniform(len(low_res), generator) < 0.5
        return torch.where(blurred[:, None, None, None].to(low_res.device), blur(low_res, sigma), low_res)

    def _levelled(self, low_res: Tensor, generator: torch.Generator) -> Batch:
        """With noise-level conditioning: the small pictures at levels drawn for each, and these levels."""
        if self.level is None:
            return {}
        level = whole_numbers(self.config.noise_levels + 1, (len(low_res),), generator).to(low_res.device)
        eps = normal(low_res.shape, generator).to(low_res)
        return {"low_res": self.at_level(low_res, eps, level), "level": level}

    def at_level(
        self, low_res: Float[Tensor, "b 3 k k2"], eps: Float[Tensor, "b 3 k k2"], level: Int[Tensor, "b"]
    ) -> Float[Tensor, "b 3 k k2"]:
        """Small pictures noised as after `level` steps of the noise table; level 0 leaves them as they are."""
        return self.noise_scheduler.add_noise(low_res, eps, level - 1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean squared error for a noised batch `{x_t, low_res, z_img, t, x_0}`."""
        require(batch, "x_t", "low_res", "z_img", "t")
        batch = readable(batch, self)
        z = self._seen(batch["z_img"], len(batch["x_t"]))
        if z is not None:
            z = condition(z, batch, self._seen(None, 1)[0])  # type: ignore[index]
        enlarged = self._smooth(batch["low_res"], batch["x_t"].shape[-2:])
        prediction = self._predict(batch["x_t"], enlarged, z, self.embed(batch["t"], batch.get("level")))
        return self.mse(prediction, self.wanted(batch["x_t"], batch["t"], batch))

    # Sampling

    @plain_numbers
    def denoiser(
        self,
        z_img: Float[Tensor, "b d"] | None,
        *,
        low_res: Float[Tensor, "b 3 k k2"],
        guidance: float | None = None,
        noise_level: int = 0,
        tiling: Tiling | None = None,
    ) -> Denoiser:
        """A denoiser over large pictures; `guidance` 1 is off, as in the paper. z_img None: the null embedding.

        noise_level: the one that `low_res` has. tiling: how pictures are cut that are larger than its tiles.
        """
        # Once for all steps, and before it is cut, so that a tile's border is no border to the interpolation.
        enlarged = self._smooth(low_res, self._enlarged(low_res))

        def predict(x_t: Tensor, t: Tensor, enlarged: Tensor, z: Tensor | None = None) -> Tensor:
            if (last := self._last_at(t)) is not None:
                return last(x_t, t, z, enlarged)
            level = timesteps_of(noise_level, t)
            return self._predict(x_t, enlarged, z, self.embed(t, level))

        around = partial(tiled, tiling=tiling, pictures=("enlarged",)) if tiling else None
        null, full = (
            {"enlarged": enlarged} | ({} if (seen := self._seen(z, len(low_res))) is None else {"z": seen})
            for z in (None, z_img)
        )
        at_once = MAP_ON_CPU if self.device.type == "cpu" else MAP_ON_GPU
        height, width = enlarged.shape[-2:]
        rows = self.config.unet.rows_at_once(height, width, at_once)
        guided = self.guided(predict, [null, full], [self.weight(guidance)], around=around, max_rows=rows)

        def denoise(x_t: Tensor, t: Tensor) -> Denoised:
            if (last := self._last_at(t)) is not None:
                lay_down(self)  # so that one network at a time is in memory where that is wished
            with at_work(last or self), freed_at_once(rows == 1 and self.device.type == "cpu"):
                return guided(x_t, t)

        return denoise

    def _last_at(self, t: Tensor) -> "LastStep | None":
        """The network of the last step, where there is one and this is the step."""
        return self.last if self.last is not None and bool((t < 1).all()) else None

    @plain_numbers
    @torch.no_grad()
    def sample(
        self,
        z_img: Float[Tensor, "b d"] | None,
        low_res: Float[Tensor, "b 3 k k2"],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        sampler: Sampler | None = None,
        guidance: float | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
        noise_level: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        whole: bool = False,
    ) -> Float[Tensor, "b 3 h w"]:
        """Large pictures in [-1, 1] for small ones; without an embedding the null embedding stands in.

        noise_level: of the small pictures, see `UpsamplerConfig`; by default the settings' own. An upsampler that was
        trained without levels has none to choose.
        tile, overlap: pixels of the large picture; what is larger than a tile is made of overlapping ones, so that no
        call of the network sees more. By default tiles have `image_size`, and an eighth of that overlaps.
        whole: small pictures may have any height and width, and keep them.

        Raises UsageError for pictures of another size than `low_res_size` unless `whole` is set, a level that doesn't
        exist, and tiles that don't fit the U-Net.
        """
        require_eta(eta)
        if not whole:
            self._check_size(low_res)
        low_res = low_res.float()
        tiling, level = self.tiling(tile, overlap), self.chosen_level(noise_level)
        padded = self._padded(low_res)
        bound = LowResDenoiser(self, z_img, level, tiling)
        if level:
            padded = self._sampled_at(padded, level, seeds, bound.kind)
        steps = self.default_steps if steps is None else steps
        shape = (len(padded), 3, *self._enlarged(padded))
        sampler = sampler or DDIMSampler(self.noise_scheduler)
        x = sampler.sample(
            bound, padded, shape, steps, eta=eta, guidance=guidance, seeds=seeds, on_step=on_step
        )
        height, width = self._enlarged(low_res)
        return x[..., :height, :width]

    @plain_numbers
    def tiling(self, tile: int | None = None, overlap: int | None = None) -> Tiling:
        """How this upsampler cuts large pictures. Raises UsageError for tiles that don't fit the U-Net."""
        side = self.config.image_size if tile is None else tile
        at_once = 1 if self.device.type == "cpu" else TILES_AT_ONCE  # a CPU is busy with one, and has its cache for it
        return Tiling(side, overlap, grid=self.config.unet.factor, at_once=at_once)

    @plain_numbers
    def chosen_level(self, noise_level: int | None = None) -> int:
        """The noise level that is sampled at: the caller's, else the settings'; 0 without noise-level conditioning.

        Raises UsageError for one that training has not seen.
        """
        most = self.config.noise_levels
        level = self.config.noise_level if noise_level is None else noise_level
        if most and not 0 <= level <= most:
            raise UsageError(f"noise_level must be a whole number from 0 to {most} for this upsampler, got {level}")
        return level if most else 0

    def _enlarged(self, low_res: Tensor) -> tuple[int, int]:
        """Height and width of the large picture."""
        return low_res.shape[-2] * self.config.scale, low_res.shape[-1] * self.config.scale

    def _check_size(self, low_res: Tensor) -> None:
        size, got = self.config.low_res_size, tuple(low_res.shape[-2:])
        if got != (size, size):
            raise UsageError(
                f"the upsampler takes {size}-px pictures, got {got}: resize them first, or keep them with whole=True"
            )

    def _padded(self, low_res: Float[Tensor, "b 3 k k2"]) -> Float[Tensor, "b 3 n n2"]:
        """Mirrored below and on the right until the U-Net's levels fit."""
        factor = self.config.unet.factor
        step = factor // gcd(factor, self.config.scale)
        height, width = low_res.shape[-2:]
        below, right = -height % step, -width % step
        mirrored = below < height and right < width  # a narrow picture has too few pixels to mirror
        return F.pad(low_res, (0, right, 0, below), mode="reflect" if mirrored else "replicate")

    def _sampled_at(
        self, low_res: Float[Tensor, "b 3 k k2"], level: int, seeds: Sequence[int] | None, stage: str
    ) -> Float[Tensor, "b 3 k k2"]:
        """Small pictures at a noise level, each by noise of its own stream."""
        rows, stream = len(low_res), f"{stage}-low-res"
        noise = PictureNoise.fresh(rows, stream) if seeds is None else PictureNoise(seeds, stream)
        eps = noise.normal(low_res.shape, low_res.device)
        return self.at_level(low_res, eps, timesteps_of(level, low_res))


class LowResDenoiser:
    """An upsampler bound to an embedding, if there is one, to the small pictures' noise level and to the size of tiles,
    so that samplers see the one call they know."""

    def __init__(
        self,
        upsampler: Upsampler,
        z_img: Float[Tensor, "b d"] | None,
        noise_level: int = 0,
        tiling: Tiling | None = None,
    ) -> None:
        self.upsampler, self.z_img, self.noise_level, self.tiling = upsampler, z_img, noise_level, tiling
        # Two upsamplers in a row draw from two streams of noise.
        self.kind = f"upsampler-{upsampler.config.image_size}"
        self.noise_scheduler, self.spacing = upsampler.noise_scheduler, upsampler.spacing
        self.eps_mean_square = upsampler.eps_mean_square

    def denoiser(self, z_cond: Float[Tensor, "b 3 k k2"], *, guidance: float | None = None) -> Denoiser:
        """The upsampler's denoiser for these small pictures."""
        return self.upsampler.denoiser(
            self.z_img, low_res=z_cond, guidance=guidance, noise_level=self.noise_level, tiling=self.tiling
        )


class LastStep(nn.Module):
    """A network for the last step alone, such as one that was trained on to please a discriminator.

    It computes in float32 whatever the other steps do: nothing after it smooths its rounding.
    """

    in_float32 = stored_exactly = True

    def __init__(self, config: UpsamplerConfig, noise_scheduler: NoiseScheduler) -> None:
        super().__init__()
        self.time = time_embedder(config, config.unet.t_dim, noise_scheduler)
        self.precondition = preconditioning(config)
        self.network = DecoderUNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        t: Float[Tensor, "b"] | Int[Tensor, "b"],
        z: Float[Tensor, "b d"] | None,
        enlarged: Float[Tensor, "b 3 h w"],
    ) -> Float[Tensor, "b 3 h w"]:
        """The prediction of the upsampler's own target."""
        with torch.autocast(x_t.device.type, enabled=False):
            t_emb = self.time(t)
            answer = self.network(x_t, z, t_emb, low_res=enlarged)
            return answer if self.precondition is None else self.precondition(answer, x_t, t_emb, enlarged)


def enlarge(
    low_res: Float[Tensor, "b c k k2"], size: Sequence[int], *, antialiased: bool = False
) -> Float[Tensor, "b c h w"]:
    """Bicubic, the same in training, in sampling and on every device."""
    if antialiased:
        return F.interpolate(low_res, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)
    return F.interpolate(low_res, size=tuple(size), mode="bicubic", align_corners=False).clamp(-1.5, 1.5)


def shrink(x: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c k k2"]:
    """The mean of each square of `scale` pixels a side."""
    return F.avg_pool2d(x, scale)


def random_crop(
    x: Float[Tensor, "b c h w"], crop: int | None, grid: int, generator: torch.Generator
) -> Float[Tensor, "b c k k2"]:
    """One crop of each picture, its corner on a multiple of `grid` so that small and large pixels stay aligned."""
    if crop is None or crop >= x.shape[-1]:
        return x
    corners = whole_numbers((x.shape[-1] - crop) // grid + 1, (len(x), 2), generator) * grid
    crops = zip(x, corners.tolist(), strict=True)
    return torch.stack([picture[:, top : top + crop, left : left + crop] for picture, (top, left) in crops])


def blur(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """A 3 x 3 Gaussian blur (the paper: kernel 3, sigma 0.6)."""
    if sigma <= 0.05:
        return x
    taps = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float32, device="cpu") / sigma) ** 2)
    kernel = torch.outer(taps / taps.sum(), taps / taps.sum()).to(x).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
