"""The autoregressive prior: CLIP image embeddings drawn component by component (DALL·E 2 paper, section 2.2).

The image embedding is seen along its principal directions (`space.basis`), the widest first, and each component is a
bucket number. A caption's embedding, its encoded text where there is any, and the dot product of both embeddings come
before them; the dot product is known in training and wished for in sampling, where a high one is asked for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.config import Settings
from dalle_2.errors import UsageError
from dalle_2.models.autoregressive_transformer import AutoregressiveTransformer
from dalle_2.models.diffusion import Batch, require, unit_space
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer
from dalle_2.models.precision import MixedPrecision, buildable, in_own_precision, own_precision, readable
from dalle_2.models.quantiser import Quantiser, encode, fit, fit_shares
from dalle_2.sampling.noise import PictureNoise, uniform
from dalle_2.sampling.options import TokenOptions
from dalle_2.sampling.token_sampler import TokenSampler, log_exponentials
from dalle_2.scalars import plain_numbers


class AutoregressivePriorConfig(Settings):
    """Sizes of the network, its buckets, and how it is sampled by default.

    `space` and `text_space` are as in `PriorConfig`; as many components are drawn as `space` has directions.
    buckets: of each component. waves: how finely the network may tell them apart, see `SmoothReadout`.
    context, text_width: number and width of the text states that come before all else; context 0 for none. caption: a
    text transformer of the prior's own, which makes them from tokens; number and width are then its own.
    dot_percentile: the dot product is drawn from what lies above this share of the training data's, evenly; of 50, 70,
    85 and 95 the paper found 50 best. temperature, top_k, top_p: see `TokenSampler`. candidates: as in `PriorConfig`.
    """

    dim: int = Field(default=512, ge=1, le=bounds.WIDTH)
    width: int = Field(default=512, ge=1, le=bounds.WIDTH)
    depth: int = Field(default=6, ge=0, le=bounds.DEPTH)
    heads: int = Field(default=8, ge=1, le=bounds.WIDTH)
    buckets: int = Field(default=1024, ge=2, le=bounds.HIDDEN)
    waves: int = Field(default=128, ge=1, le=bounds.WIDTH)
    dot_buckets: int = Field(default=100, ge=2, le=bounds.HIDDEN)
    context: int = Field(default=0, ge=0, le=bounds.CONTEXT)
    text_width: int = Field(default=512, ge=1, le=bounds.WIDTH)
    caption: TextConfig | None = None
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of training rows that lose caption and dot product (classifier-free guidance)."""
    guidance: float = Field(default=1.0, ge=0, le=bounds.FACTOR)
    temperature: float = Field(default=1.0, ge=0, le=bounds.FACTOR)
    top_k: int | None = Field(default=None, ge=1, le=bounds.TOKEN)
    top_p: float = Field(default=1.0, gt=0, le=1)
    dot_percentile: float = Field(default=50.0, ge=0, lt=100)
    candidates: int = Field(default=2, ge=1, le=bounds.CANDIDATES)
    space: EmbeddingSpace | None = None
    text_space: EmbeddingSpace | None = None

    @property
    def text_shape(self) -> tuple[int, int]:
        """Number and width of the text states; 0 of them for none."""
        own = self.caption
        return (self.context, self.text_width) if own is None else (own.context_length, own.width)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "AutoregressivePriorConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


@dataclass(frozen=True)
class TokenStep:
    """Component `index` of `total` (from 0) is drawn, in every row."""

    index: int
    total: int


OnStep = Callable[[TokenStep], None]


@dataclass(frozen=True, eq=False)
class Caption:
    """What is known of captions: CLIP's embeddings, and their encoded text, where `valid` is False at padding."""

    z_txt: Float[Tensor, "b d"]
    text: Float[Tensor, "b l w"] | None = None
    valid: Bool[Tensor, "b l"] | None = None

    def repeated(self, count: int) -> "Caption":
        """Every row `count` times, one after the other."""
        return self._each(lambda x: x.repeat_interleave(count, dim=0))

    def twice(self) -> "Caption":
        """All rows, and all of them again."""
        return self._each(lambda x: torch.cat([x, x]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Caption":
        text, valid = (None if x is None else change(x) for x in (self.text, self.valid))
        return Caption(change(self.z_txt), text, valid)


@dataclass(frozen=True)
class _Plan:
    """How a run of `sample` draws."""

    sampler: TokenSampler
    guidance: float
    on_step: OnStep | None
    cache: bool

    def tell(self, step: TokenStep) -> None:
        if self.on_step is not None:
            with torch.inference_mode(False):  # which the caller's own tensors have no part in
                self.on_step(step)


@dataclass(frozen=True, eq=False)
class _Noise:
    """Chance, a row a picture: uniform in [0, 1) for the dot product, as `TokenSampler` takes it for the components."""

    dot: Float[Tensor, "r"]
    tokens: Float[Tensor, "r k v"]


class AutoregressivePrior(MixedPrecision):
    """Image embeddings for text embeddings, a component at a time; it goes wherever a `Prior` goes."""

    kind = "autoregressive_prior"
    dot_edges: Tensor

    @buildable
    def __init__(self, config: AutoregressivePriorConfig | None = None) -> None:
        super().__init__()
        self.config = self.settings = config = config or AutoregressivePriorConfig()
        self.space = config.space or unit_space(config.dim)
        self.text_space = config.text_space or unit_space(config.dim)
        self.network = AutoregressiveTransformer(
            config.dim,
            self.space.width,
            config.buckets,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            waves=config.waves,
            dot_buckets=config.dot_buckets,
            context=config.text_shape[0],
            text_width=config.text_shape[1],
        )
        self.null_z = nn.Parameter(torch.zeros(config.dim))
        context, text_width = config.text_shape
        self.null_text = nn.Parameter(torch.zeros(text_width)) if context else None
        self.caption = TextTransformer(config.caption) if config.caption else None
        self.quantiser = Quantiser(self.space.width, config.buckets)
        # Until they are fitted, buckets of equal width over all that a dot product can be.
        edges = torch.linspace(-1, 1, config.dot_buckets + 1, dtype=torch.float32)
        self.register_buffer("dot_edges", edges[None, 1:-1].clone())

    @classmethod
    def from_config(cls, config: AutoregressivePriorConfig) -> "AutoregressivePrior":
        """The untrained prior of these settings."""
        return cls(config)

    @property
    def components(self) -> int:
        """How many numbers are drawn for an embedding."""
        return self.space.width

    @property
    def default_steps(self) -> int:
        """A step a component: there are no more and no fewer."""
        return self.components

    @property
    def _text_names(self) -> tuple[str, ...]:
        """What a batch must hold beside embeddings."""
        if self.caption is not None:
            return ("tokens",)
        return ("text",) if self.config.context else ()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.null_z.device

    # Training

    @torch.no_grad()
    def fit_buckets(self, z_txt: Float[Tensor, "n d"], z_img: Float[Tensor, "n d"]) -> None:
        """Lays the buckets of components and dot products over pairs of embeddings. Raises UsageError as `fit` does."""
        self.quantiser.set(fit(self._components(z_img).cpu(), self.config.buckets))
        dot = F.cosine_similarity(z_txt.cpu().double(), z_img.cpu().double())  # a Mac's GPU has no float64
        self.dot_edges.copy_(fit_shares(dot, self.config.dot_buckets))

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Clean pairs `{z_txt, z_img}` to `{z_txt, buckets, dot, dropped}`; nothing is noised but what a row knows.

        With text states also `{text}` and, where some of them are padding, `{valid}`; with a text transformer of its
        own, the caption's `{tokens}`.
        Raises UsageError for a batch that lacks something, and embeddings that are not finite.
        """
        require(batch, "z_txt", "z_img", *self._text_names)
        batch = readable(batch, self)
        z_txt, z_img = batch["z_txt"], batch["z_img"]
        self._check("z_txt", z_txt)
        self._check("z_img", z_img)
        dropped = uniform(len(z_img), generator) < self.config.drop
        names = (*self._text_names, *(["valid"] if self._text_names == ("text",) else []))
        text: Batch = {name: batch[name] for name in names if name in batch}
        return {
            "z_txt": z_txt,
            "buckets": self.quantiser.encode(self._components(z_img)),
            "dot": encode(F.cosine_similarity(z_txt, z_img)[:, None], self.dot_edges)[:, 0],
            "dropped": dropped.to(z_img.device),
            **text,
        }

    @in_own_precision
    def loss(self, batch: Batch) -> Batch:
        """The mean cross entropy of a component, in nats, for a batch as `noised` gives it; and how often the
        likeliest bucket is the right one."""
        require(batch, "z_txt", "buckets", "dot", *self._text_names)
        batch = readable(batch, self)
        text = (batch.get("text"), batch.get("valid")) if self.caption is None else self.read(batch["tokens"])
        prefix, valid = self._prefix(Caption(batch["z_txt"], *text), batch["dot"], batch.get("dropped"))
        logits = self.network(prefix, self.quantiser.decode(batch["buckets"]), valid).float().flatten(0, 1)
        tokens = batch["buckets"].flatten()
        return {
            "loss": F.cross_entropy(logits, tokens),
            "accuracy": (logits.detach().argmax(dim=1) == tokens).float().mean(),
        }

    def read(self, tokens: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b l w"], Bool[Tensor, "b l"]]:
        """The states of captions by the prior's own text transformer, as long as its context; False at padding."""
        assert self.caption is not None
        states, valid = self.caption.read(tokens)
        rest = self.caption.config.context_length - states.shape[1]
        return F.pad(states, (0, 0, 0, rest)), F.pad(valid, (0, rest))

    # Sampling

    @plain_numbers
    @torch.no_grad()
    def sample(
        self,
        z_txt: Float[Tensor, "b d"],
        t: int | None = None,
        *,
        guidance: float | None = None,
        drawing: TokenOptions | None = None,
        seeds: Sequence[int] | None = None,
        text: Float[Tensor, "b l w"] | None = None,
        valid: Bool[Tensor, "b n"] | None = None,
        tokens: Int[Tensor, "b m"] | None = None,
        on_step: OnStep | None = None,
        cache: bool = True,
    ) -> Float[Tensor, "b d"]:
        """Image embeddings drawn for text embeddings, in the space that CLIP gives them; see `sample_candidates`."""
        drawn = self.sample_candidates(
            z_txt, 1, t, guidance=guidance, drawing=drawing, seeds=seeds,
            text=text, valid=valid, tokens=tokens, on_step=on_step, cache=cache,
        )  # fmt: skip
        return drawn[:, 0]

    @plain_numbers
    @torch.no_grad()
    def sample_candidates(
        self,
        z_txt: Float[Tensor, "b d"],
        count: int,
        t: int | None = None,
        *,
        guidance: float | None = None,
        drawing: TokenOptions | None = None,
        seeds: Sequence[int] | None = None,
        text: Float[Tensor, "b l w"] | None = None,
        valid: Bool[Tensor, "b n"] | None = None,
        tokens: Int[Tensor, "b m"] | None = None,
        on_step: OnStep | None = None,
        cache: bool = True,
    ) -> Float[Tensor, "b {count} d"]:
        """`count` image embeddings for each text embedding, of which the first is what `sample` draws.

        t: the number of steps, which stands where a diffusion prior has it; here it can only be that of components.
        guidance, drawing: by default the settings'; guidance 1 is off and costs no second pass.
        seeds: one a row, so that what is drawn hangs on the row alone; by default from PyTorch's global generator.
        text, valid: the caption's encoded states, and False where they are padding; for a network that reads them.
        tokens: the caption's, in their place, for a prior with a text transformer of its own.
        on_step: called after every component. cache: whether keys and values are kept; the tokens are the same, and
            without it the whole sequence is read anew for each.

        Always in the weights' own precision: a step reads every weight once, and autocast would first write a copy of
        each. Raises UsageError for embeddings of another width or not finite, text that doesn't fit the network, steps
        other than components, guidance below 0, other numbers of seeds than rows, and as `TokenSampler` does.
        """
        self._check("z_txt", z_txt)
        self._check_steps(t)
        if self.caption is not None and tokens is not None:
            text, valid = self.read(tokens)
        self._check_text(text, valid, len(z_txt))
        plan = _Plan(self.token_sampler(drawing), self._weight(guidance), on_step, cache)
        streams = self._streams(len(z_txt), count, seeds)
        with own_precision(self):
            components = self._draw(Caption(z_txt, text, valid).repeated(count), self._noise(streams), plan)
        return rearrange(self._embedding(components.float()), "(b k) d -> b k d", k=count)

    def _noise(self, streams: Sequence[torch.Generator]) -> _Noise:
        """All that is drawn by chance. A stream that is named again goes on behind all that its first row needs."""
        dots, tokens = [], []
        for stream in streams:
            dots.append(uniform(1, stream))
            tokens.append(log_exponentials([stream], self.components, self.config.buckets))
        return _Noise(torch.cat(dots).to(self.device), torch.cat(tokens).to(self.device))

    def _draw(self, caption: Caption, noise: _Noise, plan: _Plan) -> Float[Tensor, "r k"]:
        """Components of all rows, as far as their noise leaves open."""
        dot = self.wished_dot(noise.dot)
        dropped = torch.zeros_like(dot, dtype=torch.bool)
        if plan.guidance != 1:  # the same rows once more, without what they know
            caption, dot, dropped = caption.twice(), dot.repeat(2), torch.cat([dropped, ~dropped])
        prefix, valid = self._prefix(caption, dot, dropped)
        tokens, logits = self._tokens(prefix, valid, noise.tokens, plan)
        # What is not finite once is so in all later logits, though a token can always be drawn.
        sound = logits.isfinite().all(dim=1, keepdim=True)
        return torch.where(sound, self.quantiser.decode(tokens), torch.nan)

    @torch.inference_mode()
    def _tokens(
        self,
        prefix: Float[Tensor, "b p w"],
        valid: Bool[Tensor, "b p"] | None,
        noise: Float[Tensor, "r k v"],
        plan: _Plan,
    ) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r v"]]:
        """The tokens of all components and the last one's logits; the one long loop.

        prefix: of the rows to draw; where guidance is on, theirs and then the unconditional ones, as many.
        """
        tokens = torch.empty(noise.shape[:2], dtype=torch.long, device=prefix.device)
        reading = self.network.reading(len(prefix), valid, cached=plan.cache)
        state = reading.begin(prefix)
        for index in range(self.components):
            logits = guided(self.network.logits(state).float(), len(noise), plan.guidance)
            tokens[:, index] = plan.sampler.choose(logits, noise[:, index])
            plan.tell(TokenStep(index, self.components))
            if index + 1 < self.components:
                drawn = self.network.embed(self.quantiser.decode(tokens[:, index : index + 1], index), index)
                state = reading.go_on(drawn if len(drawn) == len(prefix) else drawn.repeat(2, 1, 1))
        return tokens, logits

    def wished_dot(self, uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
        """Buckets of the dot product, evenly from those above `dot_percentile`, for numbers in [0, 1).

        Each bucket holds as many of the training data as any other.
        """
        buckets = self.config.dot_buckets
        lowest = min(math.ceil(buckets * self.config.dot_percentile / 100), buckets - 1)
        return (lowest + (uniform * (buckets - lowest)).long()).clamp(max=buckets - 1)

    # Between embeddings and what the network sees

    def _components(self, z_img: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return self.space.to_model(z_img)

    def _embedding(self, components: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        return self.space.finish(self.space.from_model(components))

    def _prefix(
        self, caption: Caption, dot: Int[Tensor, "b"], dropped: Bool[Tensor, "b"] | None
    ) -> tuple[Float[Tensor, "b p w"], Bool[Tensor, "b p"] | None]:
        """The embedded prefix and which of its tokens are no padding; a dropped row has only nulls, and no padding."""
        z, text, valid = self.text_space.to_model(caption.z_txt).to(self.null_z), caption.text, caption.valid
        text = None if text is None else text.to(self.null_z)
        if text is not None and valid is not None:
            text = text.masked_fill(~valid[..., None], 0)  # what is not finite would reach others even past a mask
        if dropped is not None:
            z = torch.where(dropped[:, None], self.null_z, z)
            dot = dot.masked_fill(dropped, self.config.dot_buckets)
            if text is not None and self.null_text is not None:
                text = torch.where(dropped[:, None, None], self.null_text, text)
                valid = None if valid is None else valid | dropped[:, None]
        prefix = self.network.prefix(z, dot, text)
        return prefix, None if valid is None else F.pad(valid, (0, prefix.shape[1] - valid.shape[1]), value=True)

    # What a caller may ask for

    def _streams(self, rows: int, count: int, seeds: Sequence[int] | None) -> list[torch.Generator]:
        """One generator a picture, read in turn by its candidates."""
        if seeds is not None and len(seeds) != rows:
            raise UsageError(f"got {len(seeds)} seeds for {rows} rows: give one a row")
        noise = PictureNoise.fresh(rows, self.kind) if seeds is None else PictureNoise(seeds, self.kind)
        return [generator for generator in noise.generators for _ in range(count)]

    def token_sampler(self, drawing: TokenOptions | None = None) -> TokenSampler:
        """What tokens are drawn with: as asked, else as the settings say. Raises UsageError as `TokenSampler` does."""
        own = {"temperature": self.config.temperature, "top_k": self.config.top_k, "top_p": self.config.top_p}
        return TokenSampler(**(own | (drawing.given if drawing else {})))  # type: ignore[arg-type]

    def _weight(self, guidance: float | None) -> float:
        weight = self.config.guidance if guidance is None else guidance
        if not 0 <= weight < math.inf:
            raise UsageError(f"guidance must be a number from 0 up, got {weight}; 1 is off")
        return weight

    def _check(self, name: str, z: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.config.dim:
            raise UsageError(f"{name} must have shape (rows, {self.config.dim}), got {tuple(z.shape)}")
        if not z.isfinite().all():
            raise UsageError(f"{name} holds numbers that are not finite: check the CLIP that made them")

    def _check_steps(self, t: int | None) -> None:
        if t not in (None, self.components):
            raise UsageError(
                f"an autoregressive prior takes one step a component, here {self.components}, got {t}: leave it out"
            )

    def _check_text(self, text: Tensor | None, valid: Tensor | None, rows: int) -> None:
        context, width = self.config.text_shape
        if context == 0 and text is not None:
            raise UsageError("this prior reads no text states, only embeddings: leave text out")
        if context and (text is None or text.shape != (rows, context, width)):
            came = "none" if text is None else tuple(text.shape)
            raise UsageError(f"this prior reads text states of shape {(rows, context, width)}, got {came}")
        if valid is not None and (text is None or valid.shape != text.shape[:2]):
            raise UsageError(f"valid must say of each text state whether it counts, got shape {tuple(valid.shape)}")


def guided(logits: Float[Tensor, "b v"], rows: int, weight: float) -> Float[Tensor, "{rows} v"]:
    """u + weight · (c − u) of the logits c of the first rows and u of the others (Ho & Salimans 2022); 1 is off."""
    conditional = logits[:rows]
    return conditional if weight == 1 else torch.lerp(logits[rows:], conditional, weight)
