"""What a pipeline is made of: its parts, loaded when they are needed, and what each of them runs with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import nn

from dalle_2.errors import UsageError
from dalle_2.models.autoregressive_prior import AutoregressivePrior
from dalle_2.models.checkpoints import shelved
from dalle_2.models.compiling import require_compiler
from dalle_2.models.decoder import Decoder, require_eta
from dalle_2.models.decoder_unet import DecoderUNet
from dalle_2.models.diffusion import Diffusion
from dalle_2.models.fit import Encoder, check_fit
from dalle_2.models.packed import Packed
from dalle_2.models.placement import choose_device, choose_dtype, lies_on
from dalle_2.models.prior import Prior
from dalle_2.models.prior_transformer import PriorTransformer
from dalle_2.models.rest import Shelved, is_resting, whole
from dalle_2.models.stages import (
    StageDefaults,
    StageSettings,
    check_levels,
    named,
    of_stage,
    refuse_tokens,
    settled,
    token_by_token,
    up_to,
    upsampled,
)
from dalle_2.models.turns import making
from dalle_2.models.upsampler import Upsampler
from dalle_2.models.wrapped import unwrapped
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.guidance import Threshold
from dalle_2.sampling.options import TokenOptions
from dalle_2.sampling.sampler import Sampler
from dalle_2.sampling.samplers import sampler as sampler_named
from dalle_2.scalars import plain_numbers

AUTOREGRESSIVE, PAINTER = "prior-ar", "decoder-inpaint"
# Roles of parts beside the usual ones, and what their files hold.
ALTERNATIVES = {AUTOREGRESSIVE: "autoregressive_prior", PAINTER: "decoder"}

HOLDERS = ("_prior", "_decoder", "_upsamplers", "_alternatives")  # the attributes that hold parts
PRIORS = ("prior", "autoregressive_prior")

PriorName = Literal["diffusion", "ar"]
Stage: TypeAlias = Diffusion | AutoregressivePrior
SamplerNames: TypeAlias = str | Mapping[str, str] | None  # of every diffusion stage, or by stage

# A part is given as it is, as its weight file, or as something that makes it when it is first needed.
Source: TypeAlias = nn.Module | str | Path | Callable[[], nn.Module]
EncoderSource: TypeAlias = Encoder | Callable[[], Encoder]


class Parts:
    """The parts of a pipeline. They are loaded when first needed, and each may be replaced by assignment.

    A run plans with parts that are built without their weights, and refuses those whose files don't fit; each has its
    weights read when its stage begins, or when one asks for it here.

    prior_path, decoder_path, upsampler_paths: weight files, or models. Without a prior the text embedding
        goes straight to the decoder; without upsamplers the decoder's picture is the result.
    clip_encoder: by default `CLIPEncoder()`.
    prior_sampler, decoder_sampler: used unless a call names another one; by default DDIM with each part's own noise
        table.
    alternatives: further parts by role: "prior-ar", an autoregressive prior, and "decoder-inpaint", a decoder that was
        trained to fill holes.
    device, dtype: names, or PyTorch's objects. With a smaller dtype than float32 the networks run under autocast; the
        weights of parts that are loaded stay in float32, but for those that are made for another.
    low_memory: only the part at work has its weights, which are read anew each time; on a CUDA device they wait in the
        CPU's memory. compiled: networks go through `torch.compile`, which takes a while in the first step; raises
        UsageError where it has no compiler.
    defaults, name, fingerprint: what a pipeline folder says of itself.

    A model that is given rather than loaded is moved to `device`, and otherwise left as it is.

    Threads may share a pipeline, from its first use on: each draws what it draws alone.
    """

    def __init__(
        self,
        prior_path: Source | None = None,
        decoder_path: Source | None = None,
        clip_encoder: EncoderSource | None = None,
        prior_sampler: Sampler | None = None,
        decoder_sampler: Sampler | None = None,
        *,
        upsampler_paths: Sequence[Source] = (),
        alternatives: Mapping[str, Source] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        low_memory: bool = False,
        compiled: bool = False,
        defaults: StageDefaults | None = None,
        name: str = "",
        fingerprint: str = "",
    ) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        if compiled:
            require_compiler(self.device)
        self._prior, self._decoder, self._clip_encoder = prior_path, decoder_path, clip_encoder
        self._upsamplers = list(upsampler_paths)
        self._alternatives = dict(alternatives or {})
        self.prior_sampler, self.decoder_sampler = prior_sampler, decoder_sampler
        self.low_memory, self.compiled = low_memory, compiled
        self.defaults = defaults or StageDefaults()
        self.name, self.fingerprint = name, fingerprint

    # Copies, for other processes too

    def __getstate__(self) -> dict[str, Any]:
        """Weights that lie in files are read from them by the copy; those that were given, or changed, go along."""
        with making:
            models = self._models()
            places = {id(model): place for place, model in enumerate(models)}
            held = {name: _each(vars(self)[name], lambda part: places.get(id(part), part)) for name in HOLDERS}
            return {**vars(self), **held, "models": Packed(models, models)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        models = state["models"]
        vars(self).update({name: value for name, value in state.items() if name != "models"})
        for name in HOLDERS:  # where a model is to be, its place in the row stands
            vars(self)[name] = _each(state[name], lambda part: models[part] if isinstance(part, int) else part)
        for model in models:
            self._compile(model)

    def _models(self) -> list[nn.Module]:
        """Those that have been made, or were given."""
        held = (self._prior, self._decoder, *self._upsamplers, *self._alternatives.values())
        return [part for part in held if isinstance(part, nn.Module)]

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    # Parts

    @property
    def clip_encoder(self) -> Encoder:
        """The CLIP that all other parts were trained with."""
        with making:
            if not isinstance(self._clip_encoder, Encoder):
                self._clip_encoder = self._clip_encoder() if self._clip_encoder else _default_encoder(self.device)
            return self._clip_encoder

    @clip_encoder.setter
    def clip_encoder(self, encoder: EncoderSource | None) -> None:
        self._clip_encoder = encoder

    @property
    def prior(self) -> Prior | AutoregressivePrior | None:
        """Text embeddings to image embeddings; None for a pipeline that has none."""
        prior = self._planned_prior
        return None if prior is None else whole(prior)

    @prior.setter
    def prior(self, prior: Source | None) -> None:
        self._prior = prior

    @property
    def decoder(self) -> Decoder:
        """Image embeddings to pictures. Raises UsageError if the pipeline was built without one."""
        return whole(self._planned_decoder)

    @decoder.setter
    def decoder(self, decoder: Source | None) -> None:
        self._decoder = decoder

    def _without_decoder(self) -> str:
        can = " and draws embeddings of captions alone, by embed() in Python" if self._prior is not None else ""
        return (
            f"pipeline {self.name or 'given'} has no decoder{can}, so that it makes no pictures: use one that has, "
            "like karlo, or set its decoder in Python to one that was trained with the same CLIP"
        )

    @property
    def upsamplers(self) -> tuple[Upsampler, ...]:
        """Small pictures to larger ones, in the order they are used."""
        return tuple(whole(upsampler) for upsampler in self._planned_upsamplers)

    @upsamplers.setter
    def upsamplers(self, upsamplers: Sequence[Source]) -> None:
        self._upsamplers = list(upsamplers)

    @property
    def alternatives(self) -> dict[str, nn.Module]:
        """Further parts by role, loaded."""
        return {role: whole(self._alternative(role)) for role in self._alternatives}

    @alternatives.setter
    def alternatives(self, alternatives: Mapping[str, Source]) -> None:
        self._alternatives = dict(alternatives)

    @property
    def painter(self) -> Decoder:
        """The decoder that pictures with holes go to: one that was trained for them where there is one."""
        return whole(self._planned_painter)

    def prior_of(self, name: PriorName | None = None) -> Prior | AutoregressivePrior | None:
        """The prior of that name, by default the diffusion prior where there is one.

        Raises UsageError for a prior that the pipeline doesn't have.
        """
        prior = self._planned_prior_of(name)
        return None if prior is None else whole(prior)

    def first_prior(self, name: PriorName | None = None) -> Prior | AutoregressivePrior | None:
        """The prior that a run begins with; None where there is none, or a decoder that was trained to do without.

        Raises UsageError as `prior_of`, and for a prior that is asked for before such a decoder.
        """
        prior = self._planned_first_prior(name)
        return None if prior is None else whole(prior)

    # Parts as a run is planned with them: those that are to be read have no weights before they are `at_work`

    @property
    def _planned_prior(self) -> Prior | AutoregressivePrior | None:
        with making:
            if self._prior is not None:
                self._prior = self._loaded(self._prior, None)
                if not isinstance(self._prior, Prior | AutoregressivePrior):
                    raise UsageError(f"a {type(self._prior).__name__} is no prior: give one of the two kinds")
            return self._prior

    @property
    def _planned_decoder(self) -> Decoder:
        if self._decoder is None:
            raise UsageError(self._without_decoder())
        with making:
            self._decoder = self._loaded(self._decoder, "decoder")
            return self._decoder  # type: ignore[return-value]

    @property
    def _planned_upsamplers(self) -> tuple[Upsampler, ...]:
        with making:
            self._upsamplers = [self._loaded(source, "upsampler") for source in self._upsamplers]
            return tuple(self._upsamplers)  # type: ignore[arg-type]

    @property
    def _planned_painter(self) -> Decoder:
        alternative = PAINTER in self._alternatives
        return self._alternative(PAINTER) if alternative else self._planned_decoder  # type: ignore[return-value]

    def _alternative(self, role: str) -> nn.Module:
        with making:
            self._alternatives[role] = self._loaded(self._alternatives[role], ALTERNATIVES[role])
            return self._alternatives[role]  # type: ignore[return-value]

    def _planned_prior_of(self, name: PriorName | None = None) -> Prior | AutoregressivePrior | None:
        if name is None:
            return self._planned_prior
        if name == "ar" and AUTOREGRESSIVE in self._alternatives:
            return self._alternative(AUTOREGRESSIVE)  # type: ignore[return-value]
        if name not in ("ar", "diffusion"):
            raise UsageError(f"a prior is 'diffusion' or 'ar', got {name!r}")
        wanted = AutoregressivePrior if name == "ar" else Prior
        if not isinstance(self._planned_prior, wanted):
            words = "autoregressive" if name == "ar" else "diffusion"
            raise UsageError(f"this pipeline has no {words} prior: leave the prior out, or use a pipeline that has one")
        return self._planned_prior

    def _planned_first_prior(self, name: PriorName | None = None) -> Prior | AutoregressivePrior | None:
        if self._decoder is None or self._planned_decoder.config.of == "image":
            return self._planned_prior_of(name)
        if name is not None:
            raise UsageError("this pipeline's decoder was trained on captions' embeddings: leave the prior out")
        return None

    def _loaded(self, source: Source, kind: str | None) -> nn.Module:
        if isinstance(source, nn.Module):
            source = unwrapped(source)
            return source if is_resting(source) or lies_on(source, self.device) else source.to(self.device)
        if isinstance(source, str | Path):
            source = shelved(source, kind)
        if isinstance(source, Shelved):
            model = source.resting(self.device, kept=not self.low_memory)
        else:
            model = source().to(self.device)
        self._compile(model)
        return model.eval().requires_grad_(False)

    def _compile(self, model: nn.Module) -> None:
        for network in model.modules() if self.compiled else ():
            if isinstance(network, DecoderUNet | PriorTransformer):
                network.compile()

    @property
    def size(self) -> int:
        """Height and width of the finished pictures, in pixels."""
        return (self._planned_upsamplers or (self._planned_decoder,))[-1].config.image_size

    @property
    def micro_batch(self) -> int:
        """How many pictures are made at a time unless a call says otherwise."""
        return 4 if self.device.type == "cpu" else 32

    # Stages

    def stages(
        self, *, use_prior: bool = True, last_stage: str | None = None, prior: PriorName | None = None
    ) -> dict[str, Stage]:
        """The stages of a run by name, in order: "prior", "decoder", "upsampler-256".

        Raises UsageError for a last stage that doesn't exist or makes no picture, and a prior that isn't there.
        """
        planned = self._planned_stages(use_prior=use_prior, last_stage=last_stage, prior=prior)
        return {name: whole(model) for name, model in planned.items()}

    def _planned_stages(
        self, *, use_prior: bool = True, last_stage: str | None = None, prior: PriorName | None = None
    ) -> dict[str, Stage]:
        first = self._planned_first_prior(prior) if use_prior else None
        pictures: dict[str, Diffusion] = {"decoder": self._planned_decoder, **named(self._planned_upsamplers)}
        return ({"prior": first} if first else {}) | up_to(last_stage, pictures)

    @plain_numbers
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
        sampler: SamplerNames = None,
        text_guidance: float | None = None,
        thresholding: Threshold | None = None,
        noise_level: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        prior: PriorName | None = None,
        tokens: TokenOptions | None = None,
    ) -> dict[str, StageSettings]:
        """What `generate` would run with the same arguments, by stage.

        Builds the parts without reading their weights, and checks that they fit. Raises UsageError for all that
        `generate` would refuse.
        """
        require_eta(eta)
        if not use_prior and (prior, candidates) != (None, None):
            raise UsageError("prior and candidates are for a run with a prior, and this one leaves it out")
        stages = self._planned_stages(use_prior=use_prior, last_stage=last_stage, prior=prior)
        check_fit(self.clip_encoder, stages)
        scales = {"decoder": float(guidance)} if isinstance(guidance, int | float) else dict(guidance or {})
        own_steps = dict(stage_steps or {})
        self._check_names(scales, own_steps)
        settings = {}
        for name, model in stages.items():
            scale, drawn = of_stage(scales, name, None), candidates if name == "prior" else None
            if isinstance(model, AutoregressivePrior):
                settings[name] = token_by_token(model, self.defaults, own_steps.get(name), scale, drawn, tokens)
                continue
            chosen = self.sampler_of(name, model, sampler)
            wished = of_stage(own_steps, name, steps)
            settings[name] = settled(name, model, self.defaults, wished, eta, scale, drawn, chosen)
            if isinstance(model, Upsampler):
                settings[name] = upsampled(settings[name], model, noise_level, tile, overlap)
        check_levels(stages.values(), noise_level)
        if not isinstance(stages.get("prior"), AutoregressivePrior):
            refuse_tokens(tokens)
        check_reads_captions(self._planned_decoder, text_guidance)
        drawing = replace(settings["decoder"], text_guidance=text_guidance, thresholding=thresholding)
        return settings | {"decoder": drawing}

    def sampler_of(self, stage: str, model: Diffusion, names: SamplerNames = None) -> Sampler:
        """The sampler that a stage runs with: the one named, else the one given at the start, else the pipeline's own,
        else DDIM.

        Raises UsageError for a name that is none, with the nearest one, and for a stage that the pipeline can't have.
        """
        if isinstance(names, Mapping):
            self._check_names(names)
        name = of_stage(names, stage, None) if isinstance(names, Mapping) else names
        given = {"prior": self.prior_sampler, "decoder": self.decoder_sampler}.get(stage)
        if given is not None and name in (None, given.name):
            return given
        own = of_stage(self.defaults.sampler, stage, DDIMSampler.name)
        return sampler_named(name or own, model.noise_scheduler)

    def _check_names(self, *given: Mapping[str, Any]) -> None:
        """Settings may name stages that this run leaves out, but none that the pipeline can't have."""
        known = ["prior", "decoder", *named(self._planned_upsamplers)]
        wrong = [name for values in given for name in values if name not in (*known, "upsampler")]
        if wrong:
            raise UsageError(f"this pipeline has no stage {wrong[0]!r}: its stages are {', '.join(known)}")


def _each(held: Any, change: Callable[[Any], Any]) -> Any:
    """The same with every part changed, whether it is one, a row of them, or parts by role."""
    if isinstance(held, dict):
        return {role: change(part) for role, part in held.items()}
    return [change(part) for part in held] if isinstance(held, list) else change(held)


def check_whole(pipeline: Parts) -> None:
    """Raises UsageError for a pipeline whose parts are not in memory, so that they can't be written either."""
    if pipeline.low_memory:
        raise UsageError("a pipeline in low memory doesn't hold its weights: load it without low_memory to write it")


def check_reads_captions(decoder: Decoder, text_guidance: float | None) -> None:
    """Raises UsageError for guidance by the captions in a decoder that reads none."""
    if text_guidance is not None and decoder.caption is None:
        raise UsageError("text_guidance is for a decoder that reads captions, and this pipeline's reads none")


def _default_encoder(device: torch.device) -> Encoder:
    from dalle_2.models.clip_encoding import CLIPEncoder

    return CLIPEncoder(device=device)
