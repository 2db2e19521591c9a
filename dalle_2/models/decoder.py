"""The decoder: pictures drawn for CLIP image embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field, model_validator
from torch import Tensor

from dalle_2 import bounds
from dalle_2.errors import UsageError
from dalle_2.models.captions import caption_conditions
from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig
from dalle_2.models.diffusion import Batch, Bound, Diffusion, DiffusionConfig, require, settled, unit_space
from dalle_2.models.draft import Draft, DraftConfig
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer
from dalle_2.models.masks import known_channels, random_holes
from dalle_2.models.once import Once
from dalle_2.models.precision import buildable, readable
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoiser
from dalle_2.sampling.guidance import Condition, Threshold
from dalle_2.sampling.inpainting import keep_known
from dalle_2.sampling.noise import PictureNoise, normal
from dalle_2.sampling.sampler import Sampler, Step
from dalle_2.scalars import plain_numbers

KNOWN = 4  # channels of a picture that is painted into: the picture, and where it is known
DRAFTS_AT_ONCE = 512  # of 64 px: their layers take about a gigabyte


class DecoderConfig(DiffusionConfig):
    """The decoder learns the clean picture by default, as the user drew it.

    `z_noise` is the standard deviation of noise added to whitened embeddings in training, so that the decoder
    forgives a prior that is a little off. `draft`: a generator that draws a first picture from the embedding, see
    `Draft`; the U-Net then takes three `low_res_channels`.

    `caption`: a text transformer whose states the U-Net attends to; its `text_dim` is then that width. The caption of a
    row is dropped in `caption_drop` of the cases, beside `drop` for the embedding (DALL·E 2 paper, section 2.1).
    `text_guidance`: how strongly the caption is followed where the embedding is followed with `guidance`; the same
    unless set. empty: tokens of the caption that stands for none, where there is such a one. A U-Net of four
    `known_channels` is trained to fill holes. of: whose embeddings it was trained on, those
    of pictures or, for a pipeline without a prior (section 5.1), those of captions.
    """

    clip: float | None = Field(default=1.0, gt=0, le=bounds.FACTOR)
    sigma_data: float | None = Field(default=0.5, gt=0, le=bounds.FACTOR)
    image_size: int = Field(default=64, ge=8, le=bounds.SIDE)
    unet: DecoderUNetConfig = DecoderUNetConfig()
    space: EmbeddingSpace | None = None
    z_noise: float = Field(default=0.0, ge=0, le=bounds.FACTOR)
    draft: DraftConfig | None = None
    caption: TextConfig | None = None
    caption_drop: float = Field(default=0.5, ge=0, lt=1)
    text_guidance: float | None = Field(default=None, ge=0, le=bounds.FACTOR)
    empty: tuple[Annotated[int, Field(ge=0, le=bounds.TOKEN)], ...] | None = Field(None, max_length=bounds.CONTEXT)
    of: Literal["image", "text"] = "image"

    @model_validator(mode="after")
    def _channels_fit(self) -> "DecoderConfig":
        width = self.caption.width if self.caption else 0
        if self.unet.text_dim != width:
            raise ValueError(f"unet.text_dim must be {width}, the width of the states, got {self.unet.text_dim}")
        out = 6 if self.learned_variance else 3
        if self.unet.out_channels != out:
            said = "with" if self.learned_variance else "without"
            raise ValueError(f"unet.out_channels must be {out} {said} learned_variance, got {self.unet.out_channels}")
        if self.unet.known_channels not in (0, KNOWN):
            raise ValueError(f"unet.known_channels must be 0, or {KNOWN} to fill holes, got {self.unet.known_channels}")
        return self

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


@dataclass(frozen=True, eq=False)
class Known:
    """Pictures that are painted into, in [-1, 1]; hole: True where they are."""

    picture: Float[Tensor, "b 3 h w"]
    hole: Bool[Tensor, "b 1 h w"]


class Decoder(Diffusion):
    """Diffusion over pictures, conditioned on image embeddings (DALL·E 2 paper, section 2.1).

    T, target, image_size, unet: of `DecoderConfig`, which has the rest and may be given whole as `config`. The U-Net is
    small unless it is told otherwise: `Decoder(1000, unet=DecoderUNetConfig.large())` has a hundred million weights.

    Pictures, and so `x_0` and the data in `x_t`, lie in [-1, 1]. Embeddings come in as CLIP gives them; without a
    `space` of their own they are normalised, so that their length is of no matter.

    Raises ConfigError for settings that can't be, UsageError for some that contradict `config`.
    """

    kind = "decoder"

    @plain_numbers
    @buildable
    def __init__(
        self,
        T: int | None = None,
        *,
        target: str | None = None,
        image_size: int | None = None,
        unet: DecoderUNetConfig | None = None,
        config: DecoderConfig | None = None,
    ) -> None:
        config = settled(DecoderConfig, T, config, target=target, image_size=image_size, unet=unet)
        super().__init__(config, config.unet.t_dim)
        self.config = config
        self.space = config.space or unit_space(config.unet.z_dim)
        self.network = DecoderUNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.draft = Draft(config.draft) if config.draft else None
        self.caption = TextTransformer(config.caption) if config.caption else None

    @property
    def fills_holes(self) -> bool:
        """Whether the U-Net was trained to see what is kept of a picture."""
        return self.config.unet.known_channels > 0

    @classmethod
    def from_config(cls, config: DecoderConfig) -> "Decoder":
        """The untrained decoder of these settings."""
        return cls(config.T, config=config)

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        z_img: Float[Tensor, "b d"],
        t_emb: Shaped[Tensor, "..."] | float,
        *,
        tokens: Int[Tensor, "b l"] | None = None,
        known: Known | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One denoising step: the prediction for noised pictures `x_t`, of 3 channels, or 6 with a learned variance.

        t_emb: (B, t_dim), of `time(t)`, or the timesteps t themselves. tokens: of the captions, where the decoder reads
        them. known: what is kept, where it fills holes; by default nothing.
        """
        z = self.space.to_model(z_img)
        _, words = caption_conditions(self.caption, tokens)
        rows = {name: value.expand(len(x_t), *value.shape[1:]) for name, value in words.items()}
        t_emb = self.timed(t_emb, len(x_t))
        answer = self.network(x_t, z, t_emb, low_res=self._drafted(z), **rows, **self._kept(known, len(x_t)))
        return self.completed(answer, x_t, t_emb)

    @torch.no_grad()
    def drafts(self, z_img: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"] | None:
        """What the draft alone makes of image embeddings, about in [-1, 1]; None for a decoder without one."""
        if self.draft is None:
            return None
        seen = torch.split(self.space.to_model(z_img), DRAFTS_AT_ONCE)
        return torch.cat([self.draft(rows).float() for rows in seen])

    def _drafted(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"] | None:
        return None if self.draft is None else self.draft(z)

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Clean pairs `{z_img, image}` to `{x_t, z_img, t, x_0}`, with the noise and the rows that lose `z_img`.

        A decoder that reads captions wants their `tokens` too; one that fills holes gets some.
        """
        require(batch, "z_img", "image", *(["tokens"] if self.caption else []))
        batch = readable(batch, self)
        x_0 = batch["image"]
        x_t, t, eps = self.draw(x_0, generator)
        dropped = self.draw_dropped(len(x_0), self.config.drop, generator).to(x_0.device)
        noise = normal((len(x_0), self.space.width), generator).to(x_0.device)
        return {
            "x_t": x_t, "z_img": batch["z_img"], "t": t, "x_0": x_0,
            "eps": eps, "dropped": dropped, "z_noise": self.config.z_noise * noise,
            **self._further(batch, generator),
        }  # fmt: skip

    def _further(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Captions and the rows that lose them; holes."""
        further: Batch = {}
        image = batch["image"]
        if self.caption is not None:
            lost = self.draw_dropped(len(image), self.config.caption_drop, generator).to(image.device)
            further |= {"tokens": batch["tokens"], "caption_dropped": lost}
        if self.fills_holes:
            further["hole"] = random_holes(len(image), image.shape[-1], generator).to(image.device)
        return further

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean squared error for a noised batch `{x_t, z_img, t, x_0}`; with a learned variance the hybrid loss."""
        require(batch, "x_t", "z_img", "t")
        batch = readable(batch, self)
        z = condition(self.space.to_model(batch["z_img"]), batch, self.network.null_z)
        known = Known(batch["x_0"], batch["hole"]) if "hole" in batch else None
        t_emb = self.time(batch["t"])
        answer = self.network(
            batch["x_t"], z, t_emb, low_res=self._drafted(z), **self._words(batch), **self._kept(known, len(z))
        )
        return self.denoising_loss(self.completed(answer, batch["x_t"], t_emb), batch["x_t"], batch)

    def _words(self, batch: Batch) -> dict[str, Tensor]:
        """The encoded captions of a training batch."""
        if self.caption is None:
            return {}
        require(batch, "tokens")
        text = self.caption.read(batch["tokens"])
        return (text.without(batch["caption_dropped"]) if "caption_dropped" in batch else text)._asdict()

    def _kept(self, known: Known | None, rows: int) -> dict[str, Tensor]:
        """What a U-Net that fills holes is told; where nothing is known, the whole picture is a hole."""
        if not self.fills_holes:
            return {}
        if known is not None:
            return {"known": known_channels(known.picture, known.hole)}
        size = self.config.image_size
        return {"known": torch.zeros(rows, KNOWN, size, size, dtype=torch.float32, device=self.device)}

    @plain_numbers
    def denoiser(
        self,
        z_img: Float[Tensor, "b d"],
        *,
        tokens: Int[Tensor, "b l"] | None = None,
        negative: Int[Tensor, "b l"] | None = None,
        guidance: float | None = None,
        text_guidance: float | None = None,
        known: Known | None = None,
        thresholding: Threshold | None = None,
    ) -> Denoiser:
        """A denoiser over pictures; `guidance` 1 is off, None takes the default of the settings.

        tokens: of the captions; without them the embedding alone says what to draw. negative: tokens of what guidance
        leads away from, in place of no caption. text_guidance: of the caption where `guidance` is of the embedding; by
        default the same, so that both are followed together. known: what the pictures must keep. thresholding: see
        `Diffusion.guided`.

        Raises UsageError for captions, or guidance by them, of a decoder that reads none.
        """
        self._check_reads(tokens, text_guidance)
        no_words, words = caption_conditions(self.caption, tokens, negative, self.config.empty)
        kept = self._kept(known, len(z_img))
        image, nothing = self._condition(self.space.to_model(z_img)), self._condition(self.network.null_z[None])

        told = Once(self.network.tell)

        def predict(
            x_t: Tensor, t: Tensor, z: Tensor, states: Tensor | None = None, valid: Tensor | None = None,
            **pictures: Tensor,
        ) -> Tensor:  # fmt: skip
            t_emb = self.time(t)
            return self.completed(self.network(x_t, z, t_emb, told=told(z, states, valid), **pictures), x_t, t_emb)

        conditions: list[Condition] = [{**nothing, **no_words, **kept}, {**image, **words, **kept}]
        weights = [self.weight(guidance)]
        if tokens is not None and (strength := self._text_weight(text_guidance)) is not None:
            # u + g (image - u) + s (both - image), as `guide` wants it.
            conditions.insert(1, {**image, **no_words, **kept})
            weights = [weights[0] - strength, strength]
        guided = self.guided(predict, conditions, weights, thresholding)
        return guided if known is None else keep_known(guided, known.picture, known.hole)

    def _text_weight(self, text_guidance: float | None) -> float | None:
        return self.config.text_guidance if text_guidance is None else text_guidance

    def _check_reads(self, tokens: Tensor | None, text_guidance: float | None) -> None:
        if self.caption is None and (tokens is not None or text_guidance is not None):
            raise UsageError("this decoder reads no captions: leave tokens and text_guidance out, or use one that does")

    def _condition(self, z: Float[Tensor, "b d"]) -> Condition:
        """What the network is told of an embedding, with the draft made once for all steps."""
        return {"z": z} if self.draft is None else {"z": z, "low_res": self.draft(z)}

    @plain_numbers
    @torch.no_grad()
    def sample(
        self,
        z_img: Float[Tensor, "b d"],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        sampler: Sampler | None = None,
        guidance: float | None = None,
        text_guidance: float | None = None,
        tokens: Int[Tensor, "b l"] | None = None,
        negative: Int[Tensor, "b l"] | None = None,
        known: Known | None = None,
        thresholding: Threshold | None = None,
        start: Float[Tensor, "b 3 h w"] | None = None,
        strength: float | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] for image embeddings; `eta` in [0, 1).

        start: x_T; with `strength`, above 0 and at most 1, clean pictures that so much of the noise's way is laid over,
        and only the steps from there on are taken. The rest is as in `denoiser`.
        """
        require_eta(eta)
        sampler = sampler or DDIMSampler(self.noise_scheduler)
        shape = (len(z_img), 3, self.config.image_size, self.config.image_size)
        steps = self.default_steps if steps is None else steps
        timesteps = None
        if start is not None and strength is not None:
            stream = f"{self.kind}-start"
            noise = PictureNoise.fresh(len(start), stream) if seeds is None else PictureNoise(seeds, stream)
            start, timesteps = self.noised_start(start, strength, steps, noise)
        denoiser = partial(
            self.denoiser, tokens=tokens, negative=negative, text_guidance=text_guidance, known=known,
            thresholding=thresholding,
        )  # fmt: skip
        return sampler.sample(
            Bound(self, self.kind, denoiser), z_img, shape, steps,
            eta=eta, guidance=guidance, start=start, timesteps=timesteps, seeds=seeds, on_step=on_step,
        )  # fmt: skip


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
