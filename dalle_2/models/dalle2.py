"""The whole of DALL·E 2: text embedding, prior, decoder, upsamplers (paper, figure 2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from dalle_2.errors import Dalle2Error, UsageError
from dalle_2.images import to_pils
from dalle_2.models.allocation import freed_at_once
from dalle_2.models.autoregressive_prior import AutoregressivePrior, TokenStep
from dalle_2.models.candidates import best, scores
from dalle_2.models.captions import Caption
from dalle_2.models.clip_encoding import listed_pictures
from dalle_2.models.decoder import Known
from dalle_2.models.fit import check_fit, check_reads, check_sizes, check_width
from dalle_2.models.layers.text_transformer import TextTransformer
from dalle_2.models.modes import evaluating
from dalle_2.models.parts import Parts, PriorName, SamplerNames, check_reads_captions
from dalle_2.models.precision import has_fewer_digits
from dalle_2.models.rest import at_work, widened
from dalle_2.models.stages import (
    AUTOREGRESSIVE,
    StageSettings,
    named,
    refuse_tokens,
    seed_rows,
    settled,
    token_by_token,
    upscaling,
)
from dalle_2.models.upsampler import Upsampler
from dalle_2.sampling.guidance import Threshold
from dalle_2.sampling.inversion import invert
from dalle_2.sampling.options import TokenOptions
from dalle_2.sampling.sampler import Step
from dalle_2.scalars import plain_numbers
from dalle_2.text.prompts import Prompts, check_prompts, listed_prompts, negative_rows

REFINED = 1  # fixed-point iterations a step of inversion: without them the way back ends beside the picture

OnStep: TypeAlias = Callable[[str, Step | TokenStep], None]
Draw: TypeAlias = Callable[[], Tensor]


class DALLe2(Parts):
    """Prompts to pictures. What it is made of, and its constructor, stand in `Parts`."""

    @plain_numbers
    def generate(
        self,
        prompts: Prompts,
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | Mapping[str, float] | None = None,
        stage_steps: Mapping[str, int] | None = None,
        use_prior: bool = True,
        last_stage: str | None = None,
        candidates: int | None = None,
        sampler: SamplerNames = None,
        negative: Sequence[str] | str | None = None,
        text_guidance: float | None = None,
        thresholding: Threshold | None = None,
        noise_level: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        prior: PriorName | None = None,
        tokens: TokenOptions | None = None,
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
        sampler: a name of `SAMPLERS` for every diffusion stage, or names by stage; by default the samplers given at
            the start, else DDIM. Only DDIM takes an eta above 0.
        negative: what the pictures should not show, one text for all or one a prompt; guidance leads away from it.
        text_guidance: of the caption in a decoder that reads captions; by default `guidance` goes for both.
        thresholding: how the decoder's guesses are kept in range, "static", "dynamic" or "none".
        noise_level, tile, overlap: of the upsamplers, see `Upsampler.sample`.
        prior: "diffusion" or "ar", where the pipeline has both; by default the diffusion prior. tokens: how the
            autoregressive one draws.
        micro_batch: pictures at a time. on_step: called with a stage's name and its `Step` after each step.

        Raises UsageError for arguments that make no sense, parts that don't fit each other, an empty prompt;
        CheckpointError for weights that can't be read; Dalle2Error if a stage overflows even in float32.
        """
        listed = check_prompts(prompts)
        plan = self.settings(
            steps, eta, guidance=guidance, stage_steps=stage_steps,
            use_prior=use_prior, last_stage=last_stage, candidates=candidates, sampler=sampler,
            text_guidance=text_guidance, thresholding=thresholding,
            noise_level=noise_level, tile=tile, overlap=overlap, prior=prior, tokens=tokens,
        )  # fmt: skip
        rows, against = seed_rows(seeds, len(listed)), negative_rows(negative, len(listed))
        if against is not None:
            self._check_avoids(plan)
        size = self.micro_batch if micro_batch is None else micro_batch
        if size < 1:
            raise UsageError(f"micro_batch must be at least 1, got {size}")
        parts = [slice(i, i + size) for i in range(0, len(listed), size)]
        pictures = [
            self._generate(listed[part], against[part] if against else None, rows[part], plan, on_step)
            for part in parts
        ]
        return torch.cat(pictures)

    def _check_avoids(self, plan: Mapping[str, StageSettings]) -> None:
        """Raises UsageError where nothing in a run would be led away from a negative prompt."""
        prior, decoder = plan.get("prior"), plan["decoder"]
        by_prior = prior is not None and prior.sampler != AUTOREGRESSIVE and prior.guidance != 1
        if not by_prior and (self._planned_decoder.caption is None or decoder.guidance == 1):
            raise UsageError(
                "a negative prompt changes nothing here: it needs a diffusion prior, or a decoder that reads captions, "
                "with guidance above 1"
            )

    def _generate(
        self,
        prompts: list[str],
        negative: list[str] | None,
        seeds: list[int],
        plan: Mapping[str, StageSettings],
        on_step: OnStep | None,
    ) -> Tensor:
        caption, against = self._captions(prompts), self._captions(negative) if negative else None
        z = caption.z_txt
        if "prior" in plan:
            z = self._image_embeddings(caption, against, plan["prior"], seeds, on_step)
        x = self._pictures(z, plan["decoder"], seeds, on_step, caption=caption, negative=against)
        for name, upsampler in named(self._planned_upsamplers).items():
            if name in plan:
                x = self._enlarged(name, upsampler, x, z, plan[name], seeds, on_step)
        return x

    @plain_numbers
    def embed(
        self,
        prompts: Prompts,
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | None = None,
        use_prior: bool = True,
        candidates: int | None = None,
        sampler: SamplerNames = None,
        negative: Sequence[str] | str | None = None,
        prior: PriorName | None = None,
        tokens: TokenOptions | None = None,
        start: Float[Tensor, "n d"] | None = None,
        strength: float = 1.0,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "n d"]:
        """What the decoder draws prompts from: image embeddings; without a prior, with `use_prior` off, and for a
        decoder that was trained on them, text embeddings.

        candidates, sampler, prior, tokens: as in `generate`. Of more than one candidate, and where the decoder has a
        draft, what comes back is what CLIP saw in the best one's draft. start, strength: image embeddings that are
        drawn over, as in `Prior.sample_candidates`; only a diffusion prior can. Raises UsageError for what doesn't fit.
        """
        listed = check_prompts(prompts)
        model = self._planned_first_prior(prior) if use_prior else None
        if model is None:
            return self._encode_text(listed)
        check_fit(self.clip_encoder, {"prior": model})
        if isinstance(model, AutoregressivePrior):
            if start is not None:
                raise UsageError("an autoregressive prior draws nothing over: take the diffusion prior")
            run = token_by_token(model, self.defaults, steps, guidance, candidates, tokens)
        else:
            refuse_tokens(tokens)
            chosen = self.sampler_of("prior", model, sampler)
            run = settled("prior", model, self.defaults, steps, eta, guidance, candidates, chosen)
        against = negative_rows(negative, len(listed))
        avoided = self._captions(against) if against else None
        rows = seed_rows(seeds, len(listed))
        return self._image_embeddings(self._captions(listed), avoided, run, rows, on_step, start, strength)

    @plain_numbers
    def decode(
        self,
        z_img: Float[Tensor, "n d"],
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | None = None,
        sampler: SamplerNames = None,
        captions: Sequence[str] | None = None,
        negative: str | None = None,
        text_guidance: float | None = None,
        thresholding: Threshold | None = None,
        start: Float[Tensor, "n 3 h w"] | None = None,
        strength: float | None = None,
        known: Known | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        """Pictures in [-1, 1] for image embeddings, at the decoder's size.

        captions, negative: for a decoder that reads them, one a picture, and what all lead away from; others take no
        notice of them. start, strength: x_T, or
        pictures to be drawn over, as in `Decoder.sample`; by default noise from the seeds. known: what the pictures
        must keep, for which the pipeline's inpainting decoder is taken if it has one. Raises UsageError for embeddings
        of another width.
        """
        decoder = self._planned_decoder if known is None else self._planned_painter
        check_width(z_img, decoder.space, "decoder")
        chosen = self.sampler_of("decoder", decoder, sampler)
        run = settled("decoder", decoder, self.defaults, steps, eta, guidance, sampler=chosen)
        check_reads_captions(decoder, text_guidance)
        run = replace(run, text_guidance=text_guidance, thresholding=thresholding)
        caption = self._captions(check_prompts(captions)) if captions is not None else None
        against = negative_rows(negative, len(z_img))
        rows = seed_rows(seeds, len(z_img))
        return self._pictures(
            z_img.to(self.device), run, rows, on_step,
            caption=caption, negative=self._captions(against) if against else None, start=start, strength=strength,
            known=known,
        )  # fmt: skip

    @plain_numbers
    def invert(
        self,
        pictures: Float[Tensor, "n 3 h w"],
        z_img: Float[Tensor, "n d"],
        steps: int | None = None,
        *,
        captions: Sequence[str] | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        """The noise x_T from which the decoder draws these pictures, of its own size, for these embeddings.

        DDIM inversion without guidance and without thresholding (DALL·E 2 paper, section 3): `decode` with as many
        steps, eta 0 and that start gives the pictures back, the closer the more steps. Raises UsageError for pictures
        and embeddings of another shape than the decoder's.
        """
        decoder = self._planned_decoder
        check_width(z_img, decoder.space, "decoder")
        size = decoder.config.image_size
        if tuple(pictures.shape) != (len(z_img), 3, size, size):
            raise UsageError(f"the decoder draws pictures of {size} px, got {tuple(pictures.shape)}: resize them")
        run = settled("decoder", decoder, self.defaults, steps, 0.0, 1.0)
        caption = self._captions(check_prompts(captions)) if captions is not None else None
        tokens = caption.tokens if caption and decoder.caption is not None else None
        seen = watch("inversion", on_step)

        def walk() -> Tensor:
            denoiser = decoder.denoiser(z_img.to(self.device), tokens=tokens, guidance=1.0, thresholding="none")
            steps = invert(
                denoiser, pictures.to(self.device), run.steps,
                noise_scheduler=decoder.noise_scheduler, spacing=decoder.spacing, refine=REFINED,
            )  # fmt: skip
            for step in steps:
                if seen is not None:
                    seen(step)
            return step.x_s

        return self._finite("decoder", decoder, walk)

    @plain_numbers
    def upscale(
        self,
        pictures: Float[Tensor, "n 3 h w"],
        z_img: Float[Tensor, "n d"] | None = None,
        steps: int | None = None,
        eta: float = 0.0,
        *,
        seeds: Sequence[int] | int | None = None,
        guidance: float | None = None,
        sampler: SamplerNames = None,
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
        stages = named(self._planned_upsamplers)
        if not stages:
            raise UsageError(f"pipeline {self.name or 'given'} has no upsampler: use one that has")
        plan = upscaling(
            stages, self.defaults, steps, eta, guidance,
            noise_level=noise_level, tile=tile, overlap=overlap, only=upsamplers,
            chosen=lambda name, model: self.sampler_of(name, model, sampler),
        )  # fmt: skip
        z = None
        if any(stages[name].space is not None for name in plan):
            z = self._encode_images(to_pils(pictures)) if z_img is None else z_img.to(self.device)
        rows = seed_rows(seeds, len(pictures))
        x = pictures.to(self.device)
        for name, run in plan.items():
            if not whole:
                check_sizes("given picture", x.shape[-1], name, stages[name])
            if z is not None and (space := stages[name].space) is not None:
                check_width(z, space, name)
            x = self._enlarged(name, stages[name], x, z, run, rows, on_step, whole=whole)
        return x

    def _encode_text(self, prompts: Prompts | Any) -> Float[Tensor, "n d"]:
        """Text embeddings of prompts, in the space that CLIP gives them."""
        return self.clip_encoder.encode_text(listed_prompts(prompts)).float().to(self.device)

    def _captions(self, prompts: Sequence[str]) -> Caption:
        """Prompts as the stages read them: their embeddings and, where a stage reads words, their tokens."""
        return Caption(self._encode_text(list(prompts)), self._tokens(list(prompts)))

    def _tokens(self, prompts: list[str]) -> Int[Tensor, "n l"] | None:
        # Parts that no stage has loaded yet take no part in this run.
        parts = (self._prior, self._decoder, *self._alternatives.values())
        readers = [reader for part in parts if isinstance(reader := getattr(part, "caption", None), TextTransformer)]
        for reader in readers:
            check_reads(self.clip_encoder, "pipeline", reader.config)
        return self.clip_encoder.tokenizer(prompts).to(self.device) if readers else None  # type: ignore[attr-defined]

    def _encode_images(self, images: Image.Image | Sequence[Image.Image] | Any) -> Float[Tensor, "n d"]:
        """Image embeddings of pictures, in the space that CLIP gives them."""
        return self.clip_encoder.encode_images(listed_pictures(images)).float().to(self.device)

    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """What the decoder draws pictures like these from: CLIP's embeddings of them.

        Raises UsageError for a decoder that was trained on captions' embeddings.
        """
        if self._planned_decoder.config.of != "image":
            raise UsageError(
                "this decoder was trained on captions' embeddings and can't be shown pictures: use another"
            )
        return self._encode_images(list(images))

    def _image_embeddings(
        self,
        caption: Caption,
        negative: Caption | None,
        run: StageSettings,
        seeds: list[int],
        on_step: OnStep | None,
        start: Float[Tensor, "n d"] | None = None,
        strength: float = 1.0,
    ) -> Float[Tensor, "n d"]:
        prior = self._planned_prior_of("ar" if run.sampler == AUTOREGRESSIVE else "diffusion")
        assert prior is not None
        tokens = caption.tokens if prior.caption is not None else None

        def draw() -> Tensor:
            if isinstance(prior, AutoregressivePrior):
                return prior.sample_candidates(
                    caption.z_txt, run.candidates, guidance=run.guidance, drawing=run.tokens, tokens=tokens,
                    seeds=seeds, on_step=watch("prior", on_step),
                )  # fmt: skip
            return prior.sample_candidates(
                caption.z_txt, run.candidates, run.steps, sampler=self.sampler_of("prior", prior, run.sampler),
                eta=run.eta, guidance=run.guidance, tokens=tokens, negative=negative, start=start, strength=strength,
                seeds=seeds, on_step=watch("prior", on_step),
            )  # fmt: skip

        drawn = self._finite("prior", prior, draw)
        if run.candidates == 1:
            return drawn[:, 0]
        seen = self._seen(drawn)
        return best(drawn if seen is None else seen, scores(drawn, caption.z_txt, seen))

    def _seen(self, z: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"] | None:
        """What CLIP sees in the drafts of embeddings; None where the decoder makes no draft."""
        if self._decoder is None:
            return None
        decoder = self._planned_decoder
        with at_work(decoder), torch.autocast(self.device.type, enabled=False):
            drafts = decoder.drafts(z.flatten(0, 1))
        if drafts is None:
            return None
        return rearrange(self._encode_images(to_pils(drafts.float())), "(b k) d -> b k d", k=z.shape[1])

    def _pictures(
        self,
        z_img: Tensor,
        run: StageSettings,
        seeds: list[int],
        on_step: OnStep | None,
        *,
        caption: Caption | None = None,
        negative: Caption | None = None,
        start: Tensor | None = None,
        strength: float | None = None,
        known: Known | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        decoder = self._planned_decoder if known is None else self._planned_painter
        reads = decoder.caption is not None

        def draw() -> Tensor:
            return decoder.sample(
                z_img, run.steps, run.eta, sampler=self.sampler_of("decoder", decoder, run.sampler),
                guidance=run.guidance, text_guidance=run.text_guidance, thresholding=run.thresholding,
                tokens=caption.tokens if caption and reads else None,
                negative=negative.tokens if negative and reads else None,
                start=start, strength=strength, known=known, seeds=seeds, on_step=watch("decoder", on_step),
            )  # fmt: skip

        return self._finite("decoder", decoder, draw)

    def _enlarged(
        self, name: str, upsampler: Upsampler, x: Tensor, z_img: Tensor | None,
        run: StageSettings, seeds: list[int], on_step: OnStep | None, *, whole: bool = False,
    ) -> Float[Tensor, "n 3 H W"]:  # fmt: skip
        def draw() -> Tensor:
            return upsampler.sample(
                z_img, x, run.steps, run.eta, sampler=self.sampler_of(name, upsampler, run.sampler),
                guidance=run.guidance, seeds=seeds, on_step=watch(name, on_step),
                noise_level=run.noise_level, tile=run.tile, overlap=run.overlap, whole=whole,
            )  # fmt: skip

        return self._finite(name, upsampler, draw)

    def _finite(self, name: str, model: nn.Module, draw: Draw) -> Tensor:
        return finite(name, model, draw, self.device, self.dtype, lean=self.low_memory)


@torch.no_grad()
def finite(
    name: str, model: nn.Module, draw: Draw, device: torch.device, dtype: torch.dtype, *, lean: bool = False
) -> Tensor:
    """What one stage draws, in that dtype; once more in float32 if its numbers overflow there.

    lean: with as little memory as can be. Raises Dalle2Error if they overflow in float32, too.
    """
    with evaluating(model), freed_at_once(lean and device.type == "cpu"):
        with at_work(model), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            x = draw()
        if not x.isfinite().all() and (dtype != torch.float32 or has_fewer_digits(model)):
            with at_work(model), widened(model):
                x = draw()
    if not x.isfinite().all():
        raise Dalle2Error(
            f"the {name} gave values that are not finite, even in float32: its weights are damaged, "
            "or its guidance is far too strong"
        )
    return x.float()


def watch(stage: str, on_step: OnStep | None) -> Callable[[Step | TokenStep], None] | None:
    """`on_step` of one stage."""
    return None if on_step is None else lambda step: on_step(stage, step)
