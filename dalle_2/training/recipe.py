"""What a whole training is: its data, its stages, and how long each of them runs."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dalle_2.config import Settings
from dalle_2.errors import UsageError
from dalle_2.models.autoregressive_prior import AutoregressivePriorConfig
from dalle_2.models.clip import CLIPConfig
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.diffusion import DiffusionConfig
from dalle_2.models.draft import DraftConfig
from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.models.prior import PriorConfig
from dalle_2.models.upsampler import UpsamplerConfig
from dalle_2.training.precision import DType
from dalle_2.training.stages import STAGES

RGB = 3
Reader = Literal["clip", "own"]
Sight = Literal["image", "text"]


class DataSettings(Settings):
    """`source`: the name of a data set, or a folder. `options` go to its constructor (`follow_links` lets a folder read
    what lies outside), `clip_options` only while CLIP trains (hard negatives, say). `shuffle` is off for endless
    procedural sets."""

    source: str = "shapes"
    options: dict[str, Any] = Field(default_factory=dict)
    clip_options: dict[str, Any] = Field(default_factory=dict)
    shuffle: bool = True


class RunSettings(Settings):
    """One stage's optimiser and its length. Lengths are in images; `lr` falls to nothing along half a cosine."""

    images: int = Field(ge=1)
    batch: int = Field(default=64, ge=1)
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: int = Field(default=2000, ge=0)
    ema_halflife: float | None = None
    clip_norm: float = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    dtype: DType = "auto"
    save_every: float = Field(default=120.0, gt=0)
    preview_every: int = Field(default=0, ge=0)
    log_interval: int = Field(default=20, ge=1)


class ClipStage(Settings):
    """A CLIP of our own, or `encoder`: a trained one by folder, hub id or "openclip:MODEL/TAG", which is only read."""

    encoder: str | None = None
    vocabulary: int = Field(default=512, ge=300)
    captions: int = Field(default=20_000, ge=1)
    """How many captions the tokenizer learns its vocabulary from."""
    config: CLIPConfig = CLIPConfig()
    run: RunSettings = RunSettings(images=100_000)

    @model_validator(mode="after")
    def _learns_from_the_others(self) -> Self:
        if self.encoder is None and self.run.batch < 2:
            raise ValueError("CLIP learns to tell the pairs of a batch apart: run.batch must be at least 2, got 1")
        if self.encoder is None and self.config.vision is None:
            raise ValueError("CLIP learns from pictures: config.vision can't be none")
        if self.encoder is None and self.run.accumulate > 1:
            raise ValueError(
                f"parts of a batch would lack the others' pairs: run.accumulate must be 1, got {self.run.accumulate}"
            )
        return self


class PriorStage(Settings):
    """The prior; `config.dim` and the spaces follow from CLIP and the embeddings.

    `caption`: whether it reads captions word by word, through CLIP's own text transformer, which stays as it is, or
    through one of the sizes `text`, which is trained along.
    """

    caption: Reader | None = None
    text: TextConfig = TextConfig()
    config: PriorConfig = PriorConfig()
    run: RunSettings = RunSettings(images=100_000)

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        check_steps(self.config)
        check_caption(self.config.caption, "prior")
        return self


class AutoregressivePriorStage(Settings):
    """The autoregressive prior; `config.dim` and the spaces follow from CLIP and the embeddings.

    directions: how many principal ones of an image embedding are drawn, at most; the paper keeps 319 of 1024.
    explained: no more of them than explain this share of the variance, 0.99 for example. caption, text: as for the
    prior.
    """

    caption: Reader | None = None
    text: TextConfig = TextConfig()
    directions: int = Field(default=319, ge=1)
    explained: float | None = Field(default=None, gt=0, lt=1)
    config: AutoregressivePriorConfig = AutoregressivePriorConfig()
    run: RunSettings = RunSettings(images=100_000, batch=256)

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        check_caption(self.config.caption, "prior_ar")
        return self


class DraftStage(Settings):
    """The draft that the decoder then works on; `config.z_dim` and the space follow from CLIP and the embeddings.

    of: trained on the embeddings of pictures or, as one that does without a prior, of captions (paper, section 5.1).
    """

    of: Sight = "image"
    config: DraftConfig = DraftConfig()
    run: RunSettings = RunSettings(images=500_000)


class DecoderStage(Settings):
    """The decoder; `config.unet.z_dim`, the space and the draft follow from the stages before. caption, text: as for
    the prior. of: as for the draft."""

    of: Sight = "image"
    caption: Reader | None = None
    text: TextConfig = TextConfig()
    config: DecoderConfig = DecoderConfig()
    run: RunSettings = RunSettings(images=100_000)

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        check_steps(self.config)
        if self.config.draft is not None:
            raise ValueError("a draft is trained in a stage of its own: set `draft` instead of `decoder.config.draft`")
        check_caption(self.config.caption, "decoder")
        check_channels(self.config.unet, low_res=0, out=2 * RGB if self.config.learned_variance else RGB)
        return self


class InpaintStage(Settings):
    """The inpainting decoder, which goes on from the trained one. drop: in place of the decoder's. caption, text: as
    for the prior, where the decoder itself reads no captions."""

    caption: Reader | None = None
    text: TextConfig = TextConfig()
    drop: float = Field(default=0.3, ge=0, lt=1)
    run: RunSettings = RunSettings(images=20_000)


class UpsamplerStage(Settings):
    """An upsampler; as the decoder, but that `config.unet.z_dim` 0 leaves the embedding out, as in the paper."""

    config: UpsamplerConfig = UpsamplerConfig()
    run: RunSettings = RunSettings(images=100_000)

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        check_steps(self.config)
        check_channels(self.config.unet, low_res=RGB)
        return self


def check_steps(config: DiffusionConfig) -> None:
    """Refuses more default steps than the noise table has."""
    if config.steps > config.T:
        raise ValueError(f"config.steps must be at most config.T = {config.T}, got {config.steps}")


def check_caption(caption: TextConfig | None, stage: str) -> None:
    """Refuses a text transformer in the model's own settings, which training fills in."""
    if caption is not None:
        raise ValueError(f"leave config.caption out: {stage}.caption and {stage}.text say how captions are read")


def check_channels(unet: DecoderUNetConfig, *, low_res: int, out: int = RGB) -> None:
    """Refuses a U-Net that doesn't draw RGB, or reads another number of channels beside the noised picture."""
    for name, wanted in (("out_channels", out), ("low_res_channels", low_res)):
        if getattr(unet, name) != wanted:
            raise ValueError(f"config.unet.{name} must be {wanted} in this stage, got {getattr(unet, name)}")


class Recipe(Settings):
    """Everything that `dalle2 train` needs to know.

    `embeddings`: how many pairs of a procedural data set are embedded for the later stages; a folder is always
    embedded whole. `directions`: how many principal directions of an image embedding, at most, prior, decoder and
    upsampler see; by default all of it. `prior_ar` is an autoregressive prior beside the diffusion prior.
    `upsampler_2` goes on from the pictures of `upsampler`.
    """

    name: str
    seed: int = Field(default=0, ge=0)
    data: DataSettings = DataSettings()
    embeddings: int | None = Field(default=None, ge=1)
    directions: int | None = Field(default=None, ge=1)
    clip: ClipStage = ClipStage()
    prior: PriorStage = PriorStage()
    prior_ar: AutoregressivePriorStage | None = None
    draft: DraftStage | None = None
    decoder: DecoderStage = DecoderStage()
    decoder_inpaint: InpaintStage | None = None
    upsampler: UpsamplerStage | None = UpsamplerStage()
    upsampler_2: UpsamplerStage | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that this recipe has, in order."""
        return tuple(name for name in STAGES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _upsamplers_meet(self) -> Self:
        if self.upsampler_2 is None:
            return self
        if self.upsampler is None:
            raise ValueError("upsampler_2 goes on from the pictures of upsampler, and that is off: set both or none")
        made, taken = self.upsampler.config.image_size, self.upsampler_2.config.low_res_size
        if made != taken:
            raise ValueError(
                f"the upsampler makes {made} px, but the second one takes {taken} px: make upsampler.config.image_size "
                "and upsampler_2.config.low_res_size equal"
            )
        return self

    @model_validator(mode="after")
    def _sizes_meet(self) -> Self:
        if self.upsampler is not None and self.upsampler.config.low_res_size != self.decoder.config.image_size:
            raise ValueError(
                f"the decoder draws {self.decoder.config.image_size} px, but the upsampler takes "
                f"{self.upsampler.config.low_res_size} px: make decoder.config.image_size and "
                "upsampler.config.low_res_size equal"
            )
        if self.draft is not None and self.draft.config.image_size != self.decoder.config.image_size:
            raise ValueError(
                f"the decoder draws {self.decoder.config.image_size} px, but its draft "
                f"{self.draft.config.image_size} px: make decoder.config.image_size and draft.config.image_size equal"
            )
        return self

    @model_validator(mode="after")
    def _sees_what_its_draft_sees(self) -> Self:
        if self.draft is not None and self.draft.of != self.decoder.of:
            raise ValueError(
                f"draft.of is {self.draft.of} and decoder.of {self.decoder.of}: both read the same, make them equal"
            )
        return self

    @model_validator(mode="after")
    def _draws_in_enough_steps(self) -> Self:
        if self.draft is None and self.decoder.config.steps == 1:
            raise ValueError("one step is enough only on a draft: set decoder.config.steps to about 20")
        return self

    def check_device(self, device: str) -> None:
        """Refuses, before any stage begins, a dtype that one of them can't be trained in there. Raises UsageError."""
        trained = [stage for stage in self.stages if not (stage == "clip" and self.clip.encoder)]
        runs = {stage: getattr(self, stage).run for stage in trained}
        halves = [stage for stage, run in runs.items() if run.dtype == "fp16"]
        if halves and device == "cpu":
            raise UsageError(f"{halves[0]}.run.dtype is fp16, which needs a GPU: on a CPU choose bf16 or fp32")

    def scaled(self, factor: float) -> "Recipe":
        """The same recipe with every stage's length multiplied: the way to spend more minutes, or fewer."""
        return self.model_copy(update={name: _scaled(getattr(self, name), factor) for name in self.stages})


def _scaled(stage: Any, factor: float) -> Any:
    run = stage.run
    least = min(run.batch, run.images)
    longer = run.model_copy(
        update={"images": max(least, round(run.images * factor)), "warmup": round(run.warmup * min(1.0, factor))}
    )
    return stage.model_copy(update={"run": longer})
