"""GLIDE: pictures drawn for a caption alone, without embeddings and without a prior (Nichol et al. 2021).

Its networks are configurations of `DecoderUNet` and `TextTransformer`. The words for its stages are those of the other
pipelines: the decoder draws small pictures, the upsampler large ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.errors import UsageError
from dalle_2.models.captions import caption_conditions
from dalle_2.models.dalle2 import OnStep, finite, watch
from dalle_2.models.decoder import KNOWN, Known
from dalle_2.models.decoder_unet import DecoderUNet, DecoderUNetConfig
from dalle_2.models.diffusion import Bound, Diffusion, DiffusionConfig
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer
from dalle_2.models.masks import known_channels
from dalle_2.models.once import Once
from dalle_2.models.parts import SamplerNames
from dalle_2.models.placement import choose_device, choose_dtype, lies_on
from dalle_2.models.precision import buildable
from dalle_2.models.stages import StageDefaults, StageSettings, of_stage, seed_rows, settled, up_to
from dalle_2.models.turns import making
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoiser, Target
from dalle_2.sampling.guidance import Condition
from dalle_2.sampling.inpainting import keep_known
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.sampler import Sampler, Step
from dalle_2.sampling.samplers import sampler as sampler_named
from dalle_2.sampling.spacing import Spacing
from dalle_2.scalars import plain_numbers
from dalle_2.text.glide_tokenizer import GlideTokenizer
from dalle_2.text.prompts import check_prompts, negative_rows

DECODER, UPSAMPLER = "decoder", "upsampler"
PAINTERS = {DECODER: "decoder-inpaint", UPSAMPLER: "upsampler-inpaint"}  # roles of those trained to fill holes
PAINTING = "ddpm"  # the sampler of every stage that fills holes, as published
BYTE = 127.5  # half of the levels of a stored picture


class GlideConfig(DiffusionConfig):
    """A network that draws pictures for captions, by default as the decoder is published.

    low_res_size: pixels a side of the small picture that it enlarges; None for one that draws from the caption alone.
    temperature: what the noise that sampling starts with is multiplied by. A U-Net of four `known_channels` was trained
    to fill holes.
    """

    target: Target = "eps"
    learned_variance: bool = True
    clip: float | None = Field(default=1.0, gt=0, le=bounds.FACTOR)
    steps: int = Field(default=100, ge=1, le=bounds.TIMESTEPS)
    guidance: float = Field(default=3.0, ge=0, le=bounds.FACTOR)
    spacing: Spacing | None = "linspace"
    image_size: int = Field(default=64, ge=8, le=bounds.SIDE)
    low_res_size: int | None = Field(default=None, ge=4, le=bounds.SIDE)
    temperature: float = Field(default=1.0, gt=0, le=bounds.FACTOR)
    unet: DecoderUNetConfig
    caption: TextConfig

    @model_validator(mode="after")
    def _channels_fit(self) -> Self:
        wanted = {
            "z_dim": 0, "text_dim": self.caption.width, "out_channels": 6 if self.learned_variance else 3,
            "low_res_channels": 3 if self.low_res_size else 0,
        }  # fmt: skip
        for name, value in wanted.items():
            if (got := getattr(self.unet, name)) != value:
                raise ValueError(f"unet.{name} must be {value} here, got {got}")
        if self.unet.known_channels not in (0, KNOWN):
            raise ValueError(f"unet.known_channels must be 0, or {KNOWN} to fill holes, got {self.unet.known_channels}")
        return self


class GlideModel(Diffusion):
    """Diffusion over pictures, conditioned on a caption's words and, for an upsampler, on a small picture."""

    kind = "glide"

    @buildable
    def __init__(self, config: GlideConfig) -> None:
        super().__init__(config, config.unet.t_dim)
        self.config = config
        self.network = DecoderUNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.caption = TextTransformer(config.caption)

    @classmethod
    def from_config(cls, config: GlideConfig) -> Self:
        """The untrained network of these settings."""
        return cls(config)

    @property
    def fills_holes(self) -> bool:
        """Whether the U-Net was trained to see what is kept of a picture."""
        return self.config.unet.known_channels > 0

    def forward(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        t_emb: Float[Tensor, "b e"],
        tokens: Int[Tensor, "b l"],
        *,
        low_res: Float[Tensor, "b 3 k k2"] | None = None,
        known: Known | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One denoising step: the prediction for noised pictures, of 3 channels, or 6 with a learned variance.

        low_res: for an upsampler. known: what is kept, where it fills holes; by default nothing.
        """
        _, words = caption_conditions(self.caption, tokens)
        answer = self.network(x_t, None, t_emb, **words, **self._pictures(len(x_t), low_res, known))
        return self.completed(answer, x_t, t_emb)

    def _pictures(self, rows: int, low_res: Tensor | None, known: Known | None) -> Condition:
        """What is stacked under the noised picture."""
        size, stacked = self.config.image_size, {}
        if low_res is not None:
            stacked["low_res"] = F.interpolate(rounded(low_res), (size, size), mode="bilinear", align_corners=False)
        if self.fills_holes:
            nothing = torch.zeros(rows, KNOWN, size, size, dtype=torch.float32, device=self.device)
            stacked["known"] = nothing if known is None else known_channels(known.picture, known.hole)
        return stacked

    @plain_numbers
    def denoiser(
        self,
        tokens: Int[Tensor, "b l"],
        *,
        negative: Int[Tensor, "b l"] | None = None,
        guidance: float | None = None,
        low_res: Float[Tensor, "b 3 k k2"] | None = None,
        known: Known | None = None,
    ) -> Denoiser:
        """A denoiser over pictures; `guidance` 1 is off, None takes the default of the settings.

        negative: tokens of what guidance leads away from, in place of the empty caption.
        """
        empty = (self.config.caption.pad_id,) * tokens.shape[1]
        nothing, words = caption_conditions(self.caption, tokens, negative, empty)
        pictures = self._pictures(len(tokens), low_res, known)

        told = Once(self.network.tell)

        def predict(x_t: Tensor, t: Tensor, states: Tensor, valid: Tensor, **pictures: Tensor) -> Tensor:
            t_emb = self.time(t)
            answer = self.network(x_t, None, t_emb, told=told(None, states, valid), **pictures)
            return self.completed(answer, x_t, t_emb)

        guided = self.guided(predict, [{**nothing, **pictures}, {**words, **pictures}], [self.weight(guidance)])
        return guided if known is None else keep_known(guided, known.picture, known.hole)

    @plain_numbers
    @torch.no_grad()
    def sample(
        self,
        tokens: Int[Tensor, "b l"],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        sampler: Sampler | None = None,
        negative: Int[Tensor, "b l"] | None = None,
        guidance: float | None = None,
        low_res: Float[Tensor, "b 3 k k2"] | None = None,
        known: Known | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] for tokens of captions; the rest is as in `denoiser`.

        Raises UsageError for small pictures of another size than `low_res_size`, or where none are taken.
        """
        size, wanted = self.config.image_size, self.config.low_res_size
        got = None if low_res is None else low_res.shape[-1]
        if got != wanted:
            raise UsageError(f"this network of GLIDE enlarges {wanted or 'no'} px, got {got or 'no small picture'}")
        stream = f"{self.kind}-{size}"
        noise = PictureNoise.fresh(len(tokens), stream) if seeds is None else PictureNoise(seeds, stream)
        shape = (len(tokens), 3, size, size)
        sampler = sampler or DDIMSampler(self.noise_scheduler)
        denoiser = partial(self.denoiser, negative=negative, low_res=low_res, known=known)
        return sampler.sample(
            Bound(self, stream, denoiser), tokens, shape, self.default_steps if steps is None else steps,
            eta=eta, guidance=guidance, start=self.config.temperature * noise.normal(shape),
            generators=noise.generators, on_step=on_step,
        )  # fmt: skip


Part: TypeAlias = GlideModel | Callable[[], GlideModel]


class Glide:
    """Prompts to pictures, and into the holes of pictures.

    parts: by role, "decoder", "upsampler", "decoder-inpaint" and "upsampler-inpaint", those that there are, or what
        makes them when they are first needed. A network that fills holes serves as one that has none to fill, too.
    device, dtype: as of `DALLe2`. defaults: by default DDPM draws and DDIM enlarges, as published. name, fingerprint:
        for the record.

    Raises UsageError for roles that are unknown, and without a decoder.
    """

    def __init__(
        self,
        tokenizer: GlideTokenizer,
        parts: Mapping[str, Part],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        defaults: StageDefaults | None = None,
        name: str = "",
        fingerprint: str = "",
    ) -> None:
        known, given = [*PAINTERS, *PAINTERS.values()], ", ".join(parts) or "nothing"
        if not parts.keys() <= {*known} or not {DECODER, PAINTERS[DECODER]} & parts.keys():
            raise UsageError(f"a GLIDE is made of {', '.join(known)}, and needs one of both decoders, got {given}")
        self.tokenizer, self._parts = tokenizer, dict(parts)
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.defaults = defaults or StageDefaults(sampler={DECODER: "ddpm"})
        self.name, self.fingerprint = name, fingerprint

    @property
    def micro_batch(self) -> int:
        """How many pictures are made at a time unless a call says otherwise."""
        return 4 if self.device.type == "cpu" else 32

    def part(self, role: str) -> GlideModel:
        """The network of that role."""
        with making:
            part = self._parts[role]
            model = part if isinstance(part, GlideModel) else part()
            self._parts[role] = model if lies_on(model, self.device) else model.to(self.device)
            return model

    def stages(self, *, last_stage: str | None = None, painting: bool = False) -> dict[str, GlideModel]:
        """The stages of a run by name, "decoder" and "upsampler-256". painting: of one that fills holes.

        Raises UsageError for a last stage that there isn't, and without networks that fill holes where they are needed.
        """
        if painting and not all(PAINTERS[role] in self._parts for role in self._roles()):
            raise UsageError("this GLIDE has no networks that fill holes: add the inpainting files to its folder")
        chosen = {role: role if role in self._parts and not painting else PAINTERS[role] for role in self._roles()}
        named = {}
        for role, own in chosen.items():
            model = self.part(own)
            named[role if role == DECODER else f"{role}-{model.config.image_size}"] = model
        return up_to(last_stage, named)

    def _roles(self) -> list[str]:
        return [role for role, painter in PAINTERS.items() if {role, painter} & self._parts.keys()]

    @plain_numbers
    def settings(
        self,
        steps: int | None = None,
        eta: float = 0.0,
        *,
        guidance: float | Mapping[str, float] | None = None,
        stage_steps: Mapping[str, int] | None = None,
        last_stage: str | None = None,
        sampler: SamplerNames = None,
        painting: bool = False,
    ) -> dict[str, StageSettings]:
        """What `generate` would run with the same arguments, by stage. Raises UsageError for what it would refuse."""
        stages = self.stages(last_stage=last_stage, painting=painting)
        scales = {DECODER: float(guidance)} if isinstance(guidance, int | float) else dict(guidance or {})
        own_steps = dict(stage_steps or {})
        self._check_names(stages, scales, own_steps, sampler if isinstance(sampler, Mapping) else {})
        plan = {}
        for name, model in stages.items():
            wished = of_stage(sampler, name, None) if isinstance(sampler, Mapping) else sampler
            own = PAINTING if painting else of_stage(self.defaults.sampler, name, DDIMSampler.name)
            chosen = sampler_named(wished or own, model.noise_scheduler)
            plan[name] = settled(
                name, model, self.defaults, of_stage(own_steps, name, steps), eta, of_stage(scales, name, None),
                sampler=chosen,
            )  # fmt: skip
        return plan

    def _check_names(self, stages: Mapping[str, GlideModel], *given: Mapping[str, object]) -> None:
        wrong = [name for values in given for name in values if name not in (*stages, UPSAMPLER)]
        if wrong:
            raise UsageError(f"GLIDE has no stage {wrong[0]!r}: its stages are {', '.join(stages)}")

    @plain_numbers
    def generate(
        self,
        prompts: Sequence[str],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | Mapping[str, float] | None = None,
        stage_steps: Mapping[str, int] | None = None,
        last_stage: str | None = None,
        sampler: SamplerNames = None,
        negative: Sequence[str] | str | None = None,
        known: Known | None = None,
        micro_batch: int | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        """One picture in [-1, 1] for each prompt, at the size of the last stage; arguments are those of `DALLe2`.

        known: pictures of that size, one a prompt, that keep all but their holes. The networks that fill holes are then
        taken. A small pixel belongs to the hole where any part of it does.

        Raises UsageError for arguments that make no sense, Dalle2Error if a stage overflows even in float32.
        """
        listed = check_prompts(prompts)
        painting = known is not None
        plan = self.settings(
            steps, eta, guidance=guidance, stage_steps=stage_steps, last_stage=last_stage, sampler=sampler,
            painting=painting,
        )  # fmt: skip
        rows, against = seed_rows(seeds, len(listed)), negative_rows(negative, len(listed))
        if against is not None and all(run.guidance == 1 for run in plan.values()):
            raise UsageError("a negative prompt changes nothing without guidance: set guidance above 1")
        self._check_known(known, len(listed), self.stages(last_stage=last_stage, painting=painting))
        size = self.micro_batch if micro_batch is None else micro_batch
        if size < 1:
            raise UsageError(f"micro_batch must be at least 1, got {size}")
        parts = [slice(i, i + size) for i in range(0, len(listed), size)]
        pictures = [
            self._generate(
                self._tokens(listed[part]), self._tokens(against[part]) if against else None, rows[part], plan,
                None if known is None else Known(known.picture[part], known.hole[part]), on_step,
            )
            for part in parts
        ]  # fmt: skip
        return torch.cat(pictures)

    def _check_known(self, known: Known | None, count: int, stages: Mapping[str, GlideModel]) -> None:
        size = list(stages.values())[-1].config.image_size
        if known is not None and tuple(known.picture.shape) != (count, 3, size, size):
            raise UsageError(f"expected {count} pictures of {size} px to fill, got {tuple(known.picture.shape)}")

    def _tokens(self, prompts: list[str]) -> Int[Tensor, "n l"]:
        return self.tokenizer(prompts).to(self.device)

    def _generate(
        self,
        tokens: Tensor,
        negative: Tensor | None,
        seeds: list[int],
        plan: Mapping[str, StageSettings],
        known: Known | None,
        on_step: OnStep | None,
    ) -> Tensor:
        x: Tensor | None = None
        for name, model in self.stages(last_stage=list(plan)[-1], painting=known is not None).items():
            run = plan[name]
            draw = partial(
                model.sample, tokens, run.steps, run.eta, sampler=sampler_named(run.sampler, model.noise_scheduler),
                negative=negative, guidance=run.guidance, low_res=x, seeds=seeds, on_step=watch(name, on_step),
                known=None if known is None else resized(known, model.config.image_size, self.device),
            )  # fmt: skip
            x = finite(name, model, draw, self.device, self.dtype)
        assert x is not None
        return x


def rounded(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures in [-1, 1] in the 256 levels of stored ones, which an upsampler was trained on."""
    return ((x + 1) * BYTE).round() / BYTE - 1


def resized(known: Known, size: int, device: torch.device) -> Known:
    """Pictures that are painted into at a stage's size: bicubic, and a pixel is hole where any part of it is."""
    picture, hole = known.picture.to(device), known.hole.to(device)
    if picture.shape[-1] == size:
        return Known(picture, hole)
    small = F.interpolate(picture, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
    touched: Bool[Tensor, "b 1 h w"] = F.adaptive_max_pool2d(hole.float(), size) > 0
    return replace(known, picture=small, hole=touched)
