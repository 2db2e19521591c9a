"""The decoder: pictures drawn for CLIP image embeddings."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig
from dalle_2.models.diffusion import Batch, Diffusion, DiffusionConfig, require, unit_space
from dalle_2.models.draft import Draft, DraftConfig
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.guidance import Condition
from dalle_2.sampling.sampler import Sampler, Step


class DecoderConfig(DiffusionConfig):
    """The decoder learns the clean picture by default, as the user drew it.

    `z_noise` is the standard deviation of noise added to whitened embeddings in training, so that the decoder
    forgives a prior that is a little off. `draft`: a generator that draws a first picture from the embedding, see
    `Draft`; the U-Net then takes three `low_res_channels`.
    """

    clip: float | None = 1.0
    image_size: int = Field(default=64, ge=8)
    unet: DecoderUNetConfig = DecoderUNetConfig()
    space: EmbeddingSpace | None = None
    z_noise: float = Field(default=0.0, ge=0)
    draft: DraftConfig | None = None

    @model_validator(mode="after")
    def _draft_fits(self) -> "DecoderConfig":
        wanted = 3 if self.draft else 0
        if self.unet.low_res_channels != wanted:
            raise ValueError(
                f"unet.low_res_channels must be {wanted} {'with' if self.draft else 'without'} a draft, "
                f"got {self.unet.low_res_channels}"
            )
        if self.draft and (self.draft.image_size, self.draft.z_dim) != (self.image_size, self.unet.z_dim):
            raise ValueError(
                f"the draft draws {self.draft.image_size} px from {self.draft.z_dim} numbers, the decoder "
                f"{self.image_size} px from {self.unet.z_dim}: make them equal"
            )
        return self

    @model_validator(mode="after")
    def _size_fits(self) -> "DecoderConfig":
        if self.image_size % self.unet.factor:
            raise ValueError(f"image_size {self.image_size} must be divisible by {self.unet.factor} for this U-Net")
        return self


class Decoder(Diffusion):
    """Diffusion over pictures, conditioned on image embeddings (DALL·E 2 paper, section 2.1)."""

    kind = "decoder"

    def __init__(self, T: int = 1000, *, config: DecoderConfig | None = None) -> None:
        config = config or DecoderConfig(T=T)
        super().__init__(config, config.unet.t_dim)
        self.config = config
        self.space = config.space or unit_space(config.unet.z_dim)
        self.network = DecoderUNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.draft = Draft(config.draft) if config.draft else None

    @classmethod
    def from_config(cls, config: DecoderConfig) -> "Decoder":
        """The untrained decoder of these settings."""
        return cls(config.T, config=config)

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        z_img: Float[Tensor, "b d"],
        t_emb: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b 3 h w"]:
        """One denoising step: the prediction for noised pictures `x_t`."""
        z = self.space.to_model(z_img)
        return self.network(x_t, z, t_emb, low_res=self._drafted(z))

    @torch.no_grad()
    def drafts(self, z_img: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"] | None:
        """What the draft alone makes of image embeddings, about in [-1, 1]; None for a decoder without one."""
        return self._drafted(self.space.to_model(z_img))

    def _drafted(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"] | None:
        return None if self.draft is None else self.draft(z)

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Clean pairs `{z_img, image}` to `{x_t, z_img, t, x_0}`, with the noise and the rows that lose `z_img`."""
        require(batch, "z_img", "image")
        x_0 = batch["image"]
        x_t, t, eps = self.draw(x_0, generator)
        dropped = self.draw_dropped(len(x_0), self.config.drop, generator).to(x_0.device)
        noise = torch.randn((len(x_0), self.space.width), generator=generator).to(x_0.device)
        return {
            "x_t": x_t, "z_img": batch["z_img"], "t": t, "x_0": x_0,
            "eps": eps, "dropped": dropped, "z_noise": self.config.z_noise * noise,
        }  # fmt: skip

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean squared error for a noised batch `{x_t, z_img, t, x_0}`."""
        require(batch, "x_t", "z_img", "t")
        z = condition(self.space.to_model(batch["z_img"]), batch, self.network.null_z)
        prediction = self.network(batch["x_t"], z, self.time(batch["t"]), low_res=self._drafted(z))
        return self.mse(prediction, self.wanted(batch["x_t"], batch["t"], batch))

    def denoiser(self, z_img: Float[Tensor, "b d"], *, guidance: float | None = None) -> Denoiser:
        """A denoiser over pictures; `guidance` 1 is off, None takes the default of the settings."""
        z = self.space.to_model(z_img)

        def predict(x_t: Tensor, t: Tensor, z: Tensor, low_res: Tensor | None = None) -> Tensor:
            return self.network(x_t, z, self.time(t), low_res=low_res)

        return self.guided(predict, self._condition(self.network.null_z[None]), self._condition(z), guidance)

    def _condition(self, z: Float[Tensor, "b d"]) -> Condition:
        """What the network is told, with the draft made once for all steps."""
        return {"z": z} if self.draft is None else {"z": z, "low_res": self.draft(z)}

    @torch.no_grad()
    def sample(
        self,
        z_img: Float[Tensor, "b d"],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        sampler: Sampler | None = None,
        guidance: float | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] for image embeddings; `eta` in [0, 1)."""
        require_eta(eta)
        sampler = sampler or DDIMSampler(self.noise_scheduler)
        shape = (len(z_img), 3, self.config.image_size, self.config.image_size)
        steps = self.default_steps if steps is None else steps
        return sampler.sample(
            self, z_img, shape, steps, eta=eta, guidance=guidance, seeds=seeds, on_step=on_step
        )


def condition(z: Float[Tensor, "b d"], batch: Batch, null_z: Float[Tensor, "d"]) -> Float[Tensor, "b d"]:
    """Whitened embeddings as training wants them: a little noise on each, some rows replaced by the null embedding."""
    if "z_noise" in batch:
        z = z + batch["z_noise"]
    if "dropped" in batch:
        z = torch.where(batch["dropped"][:, None], null_z.to(z), z)
    return z


def require_eta(eta: float) -> None:
    """Refuses an eta outside [0, 1)."""
    if not 0 <= eta < 1:
        raise UsageError(f"eta must be at least 0 and below 1, got {eta}: 0 is deterministic, larger is more random")
