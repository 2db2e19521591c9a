"""The whole of DALL·E 2: text embedding, prior, decoder, upsamplers (paper, figure 2)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from dalle_2.errors import Dalle2Error, UsageError
from dalle_2.images import to_pils
from dalle_2.models.candidates import best, scores
from dalle_2.models.checkpoints import load_model
from dalle_2.models.decoder import Decoder, require_eta
from dalle_2.models.diffusion import Diffusion, unit_space
from dalle_2.models.embedding_space import EmbeddingSpace, check_same
from dalle_2.models.modes import evaluating
from dalle_2.models.placement import choose_device, choose_dtype, lies_on
from dalle_2.models.prior import Prior
from dalle_2.models.stages import (
    StageDefaults,
    StageSettings,
    named,
    of_stage,
    seed_rows,
    settled,
    upsampled,
    upscaling,
)
from dalle_2.models.upsampler import Upsampler
from dalle_2.sampling.ddim_sampler import DDIMSampler, Step
from dalle_2.text.prompts import check_prompts

OnStep: TypeAlias = Callable[[str, Step], None]
Draw: TypeAlias = Callable[[], Tensor]


@runtime_checkable
class Encoder(Protocol):
    """What a pipeline asks of its CLIP. It may also have `space`; else unit length is taken for granted."""

    @property
    def dim(self) -> int: ...

    def encode_text(self, prompts: list[str]) -> Float[Tensor, "n d"]: ...

    def encode_images(self, images: list[Image.Image]) -> Float[Tensor, "n d"]: ...


# A part is given as it is, as its weight file, or as something that makes it when it is first needed.
Source: TypeAlias = nn.Module | str | Path | Callable[[], nn.Module]
EncoderSource: TypeAlias = Encoder | Callable[[], Encoder]


class DALLe2:
    """Prompts to pictures. Parts are loaded when first needed, and each may be replaced by assignment.

    prior_path, decoder_path, upsampler_paths: weight files, or models. Without a prior the text embedding
        goes straight to the decoder; without upsamplers the decoder's picture is the result.
    clip_encoder: by default `CLIPEncoder()`.
    prior_sampler, decoder_sampler: by default DDIM with each part's own noise table.
    device, dtype: names, or PyTorch's objects. Weights stay in float32; with a smaller dtype the networks run
        under autocast.
    defaults, name, fingerprint: what a pipeline folder says of itself.

    A model that is given rather than loaded is moved to `device`, and otherwise left as it is.
    """

    def __init__(
        self,
        prior_path: Source | None = None,
        decoder_path: Source | None = None,
        clip_encoder: EncoderSource | None = None,
        prior_sampler: DDIMSampler | None = None,
        decoder_sampler: DDIMSampler | None = None,
        *,
        upsampler_paths: Sequence[Source] = (),
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        defaults: StageDefaults | None = None,
        name: str = "",
        fingerprint: str = "",
    ) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self._prior, self._decoder, self._clip_encoder = prior_path, decoder_path, clip_encoder
        self._upsamplers = list(upsampler_paths)
        self.prior_sampler, self.decoder_sampler = prior_sampler, decoder_sampler
        self.defaults = defaults or StageDefaults()
        self.name, self.fingerprint = name, fingerprint

    # Parts

    @property
    def clip_encoder(self) -> Encoder:
        """The CLIP that all other parts were trained with."""
        if not isinstance(self._clip_encoder, Encoder):
            self._clip_encoder = self._clip_encoder() if self._clip_encoder else _default_encoder(self.device)
        return self._clip_encoder

    @clip_encoder.setter
    def clip_encoder(self, encoder: EncoderSource | None) -> None:
        self._clip_encoder = encoder

    @property
    def prior(self) -> Prior | None:
        """Text embeddings to image embeddings; None for a pipeline that has none."""
        if self._prior is not None:
            self._prior = self._loaded(self._prior, "prior")
        return self._prior  # type: ignore[return-value]

    @prior.setter
    def prior(self, prior: Source | None) -> None:
        self._prior = prior

    @property
    def decoder(self) -> Decoder:
        """Image embeddings to pictures. Raises UsageError if the pipeline was built without one."""
        if self._decoder is None:
            raise UsageError("this pipeline has no decoder: give decoder_path, a weight file or a Decoder")
        self._decoder = self._loaded(self._decoder, "decoder")
        return self._decoder  # type: ignore[return-value]

    @decoder.setter
    def decoder(self, decoder: Source | None) -> None:
        self._decoder = decoder

    @property
    def upsamplers(self) -> tuple[Upsampler, ...]:
        """Small pictures to larger ones, in the order they are used."""
        self._upsamplers = [self._loaded(source, "upsampler") for source in self._upsamplers]
        return tuple(self._upsamplers)  # type: ignore[arg-type]

    @upsamplers.setter
    def upsamplers(self, upsamplers: Sequence[Source]) -> None:
        self._upsamplers = list(upsamplers)

    def _loaded(self, source: Source, kind: str) -> nn.Module:
        if isinstance(source, nn.Module):
            return source if lies_on(source, self.device) else source.to(self.device)
        model = load_model(source, kind) if isinstance(source, str | Path) else source()
        return model.to(self.device).eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """Height and width of the finished pictures, in pixels."""
        return (self.upsamplers or (self.decoder,))[-1].config.image_size

    @property
    def micro_batch(self) -> int:
        """How many pictures are made at a time unless a call says otherwise."""
        return 4 if self.device.type == "cpu" else 32

    # Stages

    def stages(self, *, use_prior: bool = True, last_stage: str | None = None) -> dict[str, Diffusion]:
        """The diffusion stages of a run by name, in order: "prior", "decoder", "upsampler-256".

        Raises UsageError for a last stage that doesn't exist or makes no picture.
        """
        prior = self.prior if use_prior else None
        pictures: dict[str, Diffusion] = {"decoder": self.decoder, **named(self.upsamplers)}
        last = last_stage or list(pictures)[-1]
        if last not in pictures:
            raise UsageError(f"no stage {last!r} makes pictures here: say {' or '.join(pictures)}")
        wanted = list(pictures)[: list(pictures).index(last) + 1]
        return ({"prior": prior} if prior else {}) | {name: pictures[name] for name in wanted}

    def settings(
        self,
        steps: int | None = None,
        eta: float = 0.0,
        *,
        guidance: float | Mapping[str, float] | None = None,
        stage_steps: Mapping[str, int] | None = None,
        use_prior: bool = True,
        last_stage: str | None = None,
        candidates: int | None = None,
        noise_level: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> dict[str, StageSettings]:
        """What `generate` would run with the same arguments, by stage.

        Loads the parts and checks that they fit. Raises UsageError for all that `generate` would refuse.
        """
        require_eta(eta)
        stages = self.stages(use_prior=use_prior, last_stage=last_stage)
        self._check_fit(stages)
        scales = {"decoder": float(guidance)} if isinstance(guidance, int | float) else dict(guidance or {})
        own_steps = dict(stage_steps or {})
        self._check_names(scales, own_steps)
        settings = {}
        for name, model in stages.items():
            wish = of_stage(own_steps, name, steps), of_stage(scales, name, None)
            drawn = candidates if name == "prior" else None
            settings[name] = settled(name, model, self.defaults, wish[0], eta, wish[1], drawn)
            if isinstance(model, Upsampler):
                settings[name] = upsampled(settings[name], model, noise_level, tile, overlap)
        return settings

    def _check_names(self, *given: Mapping[str, Any]) -> None:
        """Settings may name stages that this run leaves out, but none that the pipeline can't have."""
        known = ["prior", "decoder", *named(self.upsamplers)]
        wrong = [name for values in given for name in values if name not in (*known, "upsampler")]
        if wrong:
            raise UsageError(f"this pipeline has no stage {wrong[0]!r}: its stages are {', '.join(known)}")

    def _check_fit(self, stages: Mapping[str, Any]) -> None:
        """The parts of a run speak of the same embeddings, and of the same picture sizes."""
        space = encoder_space(self.clip_encoder)
        for name, model in stages.items():
            for own in spaces(model):
                check_same(space, own, ("the CLIP encoder", f"the {name}"))
        for small, large in pairwise(name for name in stages if name != "prior"):
            _check_sizes(f"{small}'s picture", stages[small].config.image_size, large, stages[large])

    # Running

    def generate(
        self,
        prompts: Sequence[str],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | Mapping[str, float] | None = None,
        stage_steps: Mapping[str, int] | None = None,
        use_prior: bool = True,
        last_stage: str | None = None,
        candidates: int | None = None,
        noise_level: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        micro_batch: int | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        """One picture in [-1, 1] for each prompt, at the size of the last stage.

        steps: of every diffusion stage; stage_steps: of single ones, by name. Else each stage's default.
        eta: of every stage, in [0, 1); 0 is deterministic given the seed.
        seeds: one a picture, or the first of a row of them; by default drawn from PyTorch's global generator.
            Each stage has its own stream of noise: a picture hangs on its prompt and seed, not on its batch.
        guidance: of the decoder, or by stage; 1 is off.
        use_prior: False gives the text embedding to the decoder. last_stage: stop after it, e.g. "decoder".
        candidates: how many image embeddings the prior draws for each picture; by default as many as its settings say.
            The best goes on; where the decoder has a draft, each is drawn, and what CLIP sees in the best goes on.
        noise_level, tile, overlap: of the upsamplers, see `Upsampler.sample`.
        micro_batch: pictures at a time. on_step: called with a stage's name and its `Step` after each step.

        Raises UsageError for arguments that make no sense, parts that don't fit each other, an empty prompt;
        CheckpointError for weights that can't be read; Dalle2Error if a stage overflows even in float32.
        """
        listed = check_prompts(prompts)
        plan = self.settings(
            steps, eta, guidance=guidance, stage_steps=stage_steps,
            use_prior=use_prior, last_stage=last_stage, candidates=candidates,
            noise_level=noise_level, tile=tile, overlap=overlap,
        )  # fmt: skip
        rows = seed_rows(seeds, len(listed))
        size = self.micro_batch if micro_batch is None else micro_batch
        if size < 1:
            raise UsageError(f"micro_batch must be at least 1, got {size}")
        parts = [slice(i, i + size) for i in range(0, len(listed), size)]
        return torch.cat([self._generate(listed[part], rows[part], plan, on_step) for part in parts])

    def _generate(
        self, prompts: list[str], seeds: list[int], plan: Mapping[str, StageSettings], on_step: OnStep | None
    ) -> Tensor:
        z = self._encode_text(prompts)
        if "prior" in plan:
            z = self._image_embeddings(z, plan["prior"], seeds, on_step)
        x = self._pictures(z, plan["decoder"], seeds, on_step)
        for name, upsampler in named(self.upsamplers).items():
            if name in plan:
                x = self._enlarged(name, upsampler, x, z, plan[name], seeds, on_step)
        return x

    def embed(
        self,
        prompts: Sequence[str],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | None = None,
        use_prior: bool = True,
        candidates: int | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "n d"]:
        """Image embeddings for prompts; without a prior, or with `use_prior` off, the text embeddings.

        candidates: as in `generate`. Of more than one, and where the decoder has a draft, what comes back is what CLIP
            saw in the best one's draft.
        """
        listed = check_prompts(prompts)
        prior = self.prior if use_prior else None
        if prior is None:
            return self._encode_text(listed)
        self._check_fit({"prior": prior})
        run = settled("prior", prior, self.defaults, steps, eta, guidance, candidates)
        return self._image_embeddings(self._encode_text(listed), run, seed_rows(seeds, len(listed)), on_step)

    def decode(
        self,
        z_img: Float[Tensor, "n d"],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        """Pictures in [-1, 1] for image embeddings, at the decoder's size. Raises UsageError for another width."""
        _check_width(z_img, self.decoder.space, "decoder")
        run = settled("decoder", self.decoder, self.defaults, steps, eta, guidance)
        return self._pictures(z_img.to(self.device), run, seed_rows(seeds, len(z_img)), on_step)

    def upscale(
        self,
        pictures: Float[Tensor, "n 3 h w"],
        z_img: Float[Tensor, "n d"] | None = None,
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | None = None,
        on_step: OnStep | None = None,
        noise_level: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        whole: bool = False,
        upsamplers: Sequence[str] | None = None,
    ) -> Float[Tensor, "n 3 H W"]:
        """Pictures in [-1, 1] through every upsampler, or those named; z_img is by default CLIP's embedding of them.

        noise_level, tile, overlap: see `Upsampler.sample`. whole: pictures may have any height and width, and keep
        them; each upsampler enlarges them by its own factor.

        Raises UsageError for a pipeline without upsamplers, for names of none of them, and, unless `whole` is set, for
        pictures of another size than the first takes.
        """
        stages = named(self.upsamplers)
        if not stages:
            raise UsageError(f"pipeline {self.name or 'given'} has no upsampler: use one that has")
        plan = upscaling(
            stages, self.defaults, steps, eta, guidance,
            noise_level=noise_level, tile=tile, overlap=overlap, only=upsamplers,
        )  # fmt: skip
        z = self._encode_images(to_pils(pictures)) if z_img is None else z_img.to(self.device)
        rows = seed_rows(seeds, len(pictures))
        x = pictures.to(self.device)
        for name, run in plan.items():
            if not whole:
                _check_sizes("given picture", x.shape[-1], name, stages[name])
            _check_width(z, stages[name].space, name)
            x = self._enlarged(name, stages[name], x, z, run, rows, on_step, whole=whole)
        return x

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "n d"]:
        """Text embeddings of prompts, in the space that CLIP gives them."""
        return self.clip_encoder.encode_text(list(prompts)).to(self.device)

    def _encode_images(self, images: list[Image.Image]) -> Float[Tensor, "n d"]:
        """Image embeddings of pictures, in the space that CLIP gives them."""
        return self.clip_encoder.encode_images(list(images)).to(self.device)

    def _image_embeddings(
        self, z_txt: Tensor, run: StageSettings, seeds: list[int], on_step: OnStep | None
    ) -> Float[Tensor, "n d"]:
        prior = self.prior
        assert prior is not None

        def draw() -> Tensor:
            return prior.sample_candidates(
                z_txt, run.candidates, run.steps, sampler=self.prior_sampler, eta=run.eta,
                guidance=run.guidance, seeds=seeds, on_step=_watch("prior", on_step),
            )  # fmt: skip

        drawn = self._finite("prior", prior, draw)
        if run.candidates == 1:
            return drawn[:, 0]
        seen = self._seen(drawn)
        return best(drawn if seen is None else seen, scores(drawn, z_txt, seen))

    def _seen(self, z: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"] | None:
        """What CLIP sees in the drafts of embeddings; None where the decoder makes no draft."""
        drafts = self.decoder.drafts(z.flatten(0, 1)) if self._decoder is not None else None
        if drafts is None:
            return None
        return rearrange(self._encode_images(to_pils(drafts.float())), "(b k) d -> b k d", k=z.shape[1])

    def _pictures(
        self, z_img: Tensor, run: StageSettings, seeds: list[int], on_step: OnStep | None
    ) -> Float[Tensor, "n 3 h w"]:
        def draw() -> Tensor:
            return self.decoder.sample(
                z_img, run.steps, run.eta, sampler=self.decoder_sampler,
                guidance=run.guidance, seeds=seeds, on_step=_watch("decoder", on_step),
            )  # fmt: skip

        return self._finite("decoder", self.decoder, draw)

    def _enlarged(
        self, name: str, upsampler: Upsampler, x: Tensor, z_img: Tensor,
        run: StageSettings, seeds: list[int], on_step: OnStep | None, *, whole: bool = False,
    ) -> Float[Tensor, "n 3 H W"]:  # fmt: skip
        def draw() -> Tensor:
            return upsampler.sample(
                z_img, x, run.steps, run.eta,
                guidance=run.guidance, seeds=seeds, on_step=_watch(name, on_step),
                noise_level=run.noise_level, tile=run.tile, overlap=run.overlap, whole=whole,
            )  # fmt: skip

        return self._finite(name, upsampler, draw)

    @torch.no_grad()
    def _finite(self, name: str, model: nn.Module, draw: Draw) -> Tensor:
        """One stage, in the pipeline's dtype; once more in float32 if its numbers overflow there."""
        with evaluating(model):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                x = draw()
            if not x.isfinite().all() and self.dtype != torch.float32:
                x = draw()
        if not x.isfinite().all():
            raise Dalle2Error(
                f"the {name} gave values that are not finite, even in float32: its weights are damaged, "
                "or its guidance is far too strong"
            )
        return x.float()


def spaces(model: Any) -> tuple[EmbeddingSpace, ...]:
    """The embedding spaces that a stage works with."""
    return (model.text_space, model.space) if isinstance(model, Prior) else (model.space,)


def encoder_space(encoder: Encoder) -> EmbeddingSpace:
    """The space an encoder declares; unit length where it says nothing."""
    space = getattr(encoder, "space", None)
    return space if isinstance(space, EmbeddingSpace) else unit_space(encoder.dim)


def _default_encoder(device: torch.device) -> Encoder:
    from dalle_2.models.clip_encoding import CLIPEncoder

    return CLIPEncoder(device=device)


def _watch(stage: str, on_step: OnStep | None) -> Callable[[Step], None] | None:
    return None if on_step is None else lambda step: on_step(stage, step)


def _check_sizes(small: str, size: int, large: str, upsampler: Any) -> None:
    wanted = upsampler.config.low_res_size
    if size != wanted:
        raise UsageError(f"the {small} has {size} px, but the {large} takes {wanted} px: resize or change one")


def _check_width(z: Tensor, space: EmbeddingSpace, stage: str) -> None:
    if z.ndim != 2 or z.shape[1] != space.dim:
        raise UsageError(f"the {stage} takes embeddings of shape (N, {space.dim}), got {tuple(z.shape)}")
