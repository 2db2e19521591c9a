"""Diffusion super-resolution: a small picture and its CLIP image embedding to a large one."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.models.decoder import condition, require_eta
from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig
from dalle_2.models.diffusion import Batch, Diffusion, DiffusionConfig, require, unit_space
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.sampler import Sampler, Step

PAPER_UNET = DecoderUNetConfig(channels=192, attention=(), middle_attention=False, low_res_channels=3)


class UpsamplerConfig(DiffusionConfig):
    """Training sees random crops of `crop` pixels a side (the paper's quarter-size patches, section 2.1).

    `blur` is the largest standard deviation, in small pixels, of the Gaussian blur that corrupts the small
    picture in half of the rows; `corruption` is that of noise added to it.
    """

    clip: float | None = 1.0
    image_size: int = Field(default=256, ge=8)
    low_res_size: int = Field(default=64, ge=4)
    crop: int | None = Field(default=None, ge=1)
    blur: float = Field(default=0.6, ge=0)
    corruption: float = Field(default=0.0, ge=0)
    unet: DecoderUNetConfig = PAPER_UNET
    space: EmbeddingSpace | None = None

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

    @property
    def scale(self) -> int:
        """How many times larger a side becomes."""
        return self.image_size // self.low_res_size


class Upsampler(Diffusion):
    """Diffusion over large pictures, conditioned on a small one and on its image embedding."""

    kind = "upsampler"

    def __init__(self, T: int = 1000, *, config: UpsamplerConfig | None = None) -> None:
        config = config or UpsamplerConfig(T=T)
        super().__init__(config, config.unet.t_dim)
        self.config = config
        self.space = config.space or unit_space(config.unet.z_dim)
        self.network = DecoderUNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: UpsamplerConfig) -> "Upsampler":
        """The untrained upsampler of these settings."""
        return cls(config.T, config=config)

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        low_res: Float[Tensor, "b 3 k k2"],
        z_img: Float[Tensor, "b d"],
        t_emb: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b 3 h w"]:
        """One denoising step: the prediction for noised large pictures `x_t` above small ones."""
        return self._predict(x_t, low_res, self.space.to_model(z_img), t_emb)

    def _predict(self, x_t: Tensor, low_res: Tensor, z: Tensor, t_emb: Tensor) -> Tensor:
        """The network adds detail to the enlarged small picture, so that what it must learn is small."""
        enlarged = enlarge(low_res, x_t.shape[-2:])
        prediction = self.network(x_t, z, t_emb, low_res=enlarged)
        return prediction + enlarged if self.target == "x_0" else prediction

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Clean pairs `{z_img, image}` to `{x_t, low_res, z_img, t, x_0}` on random crops."""
        require(batch, "z_img", "image")
        x_0 = random_crop(batch["image"], self.config.crop, self.config.scale, generator)
        x_t, t, eps = self.draw(x_0, generator)
        low_res = self._corrupted(shrink(x_0, self.config.scale), generator)
        dropped = self.draw_dropped(len(x_0), self.config.drop, generator).to(x_0.device)
        return {
            "x_t": x_t, "low_res": low_res, "z_img": batch["z_img"], "t": t, "x_0": x_0,
            "eps": eps, "dropped": dropped,
        }  # fmt: skip

    def _corrupted(self, low_res: Tensor, generator: torch.Generator) -> Tensor:
        """What a decoder's picture may lack: some sharpness, and smooth surfaces."""
        sigma = self.config.blur * float(torch.rand((), generator=generator))
        blurred = torch.rand(len(low_res), generator=generator) < 0.5
        noise = torch.randn(low_res.shape, generator=generator).to(low_res)
        low_res = torch.where(blurred[:, None, None, None].to(low_res.device), blur(low_res, sigma), low_res)
        return low_res + self.config.corruption * noise

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean squared error for a noised batch `{x_t, low_res, z_img, t, x_0}`."""
        require(batch, "x_t", "low_res", "z_img", "t")
        z = condition(self.space.to_model(batch["z_img"]), batch, self.network.null_z)
        prediction = self._predict(batch["x_t"], batch["low_res"], z, self.time(batch["t"]))
        return self.mse(prediction, self.wanted(batch["x_t"], batch["t"], batch))

    def denoiser(
        self, z_img: Float[Tensor, "b d"] | None, *, low_res: Float[Tensor, "b 3 k k2"], guidance: float | None = None
    ) -> Denoiser:
        """A denoiser over large pictures; `guidance` 1 is off, as in the paper. z_img None: the null embedding."""
        null_z = self.network.null_z[None]
        z = null_z.expand(len(low_res), -1) if z_img is None else self.space.to_model(z_img)

        def predict(x_t: Tensor, t: Tensor, z: Tensor, low_res: Tensor) -> Tensor:
            return self._predict(x_t, low_res, z, self.time(t))

        null, full = {"z": null_z, "low_res": low_res}, {"z": z, "low_res": low_res}
        return self.guided(predict, [null, full], [self.weight(guidance)])

    @torch.no_grad()
    def sample(
        self,
        z_img: Float[Tensor, "b d"] | None,
        low_res: Float[Tensor, "b 3 k k"],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        sampler: Sampler | None = None,
        guidance: float | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Large pictures in [-1, 1] for small ones; without an embedding the null embedding stands in."""
        require_eta(eta)
        size = self.config.low_res_size
        if tuple(low_res.shape[-2:]) != (size, size):
            got = tuple(low_res.shape[-2:])
            raise UsageError(f"the upsampler takes {size}-px pictures, got {got}: resize them first")
        sampler = sampler or DDIMSampler(self.noise_scheduler)
        large = self.config.image_size
        bound = LowResDenoiser(self, z_img)
        steps = self.default_steps if steps is None else steps
        shape = (len(low_res), 3, large, large)
        return sampler.sample(
            bound, low_res, shape, steps, eta=eta, guidance=guidance, seeds=seeds, on_step=on_step
        )


class LowResDenoiser:
    """An upsampler bound to an embedding, if there is one, so that samplers see the one call they know."""

    def __init__(self, upsampler: Upsampler, z_img: Float[Tensor, "b d"] | None) -> None:
        self.upsampler, self.z_img = upsampler, z_img
        # Two upsamplers in a row draw from two streams of noise.
        self.kind = f"upsampler-{upsampler.config.image_size}"
        self.noise_scheduler, self.spacing = upsampler.noise_scheduler, upsampler.spacing
        self.eps_mean_square = upsampler.eps_mean_square

    def denoiser(self, z_cond: Float[Tensor, "b 3 k k2"], *, guidance: float | None = None) -> Denoiser:
        """The upsampler's denoiser for these small pictures."""
        return self.upsampler.denoiser(self.z_img, low_res=z_cond, guidance=guidance)


def enlarge(low_res: Float[Tensor, "b c k k2"], size: torch.Size | tuple[int, ...]) -> Float[Tensor, "b c h w"]:
    """Bicubic, the same in training, in sampling and on every device."""
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
    corners = torch.randint((x.shape[-1] - crop) // grid + 1, (len(x), 2), generator=generator) * grid
    crops = zip(x, corners.tolist(), strict=True)
    return torch.stack([picture[:, top : top + crop, left : left + crop] for picture, (top, left) in crops])


def blur(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """A 3 x 3 Gaussian blur (the paper: kernel 3, sigma 0.6)."""
    if sigma <= 0.05:
        return x
    taps = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / sigma) ** 2)
    kernel = torch.outer(taps / taps.sum(), taps / taps.sum()).to(x).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
