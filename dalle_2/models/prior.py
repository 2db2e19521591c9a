"""The diffusion prior: CLIP image embeddings drawn for a CLIP text embedding."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from pydantic import Field, model_validator
from torch import Tensor

from dalle_2 import bounds
from dalle_2.models.captions import Caption, caption_conditions, repeated
from dalle_2.models.diffusion import Batch, Bound, Diffusion, DiffusionConfig, require, settled, unit_space
from dalle_2.models.embedding_space import EmbeddingSpace
from dalle_2.models.layers.text_transformer import TextConfig, TextTransformer
from dalle_2.models.once import Once
from dalle_2.models.precision import buildable, readable
from dalle_2.models.prior_transformer import PriorTransformer
from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import Denoiser, Target
from dalle_2.sampling.guidance import Condition
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.sampler import Sampler, Step
from dalle_2.scalars import plain_numbers


class PriorConfig(DiffusionConfig):
    """The prior learns the noise by default, as the user drew it; the paper's learns `x_0`.

    `space` and `text_space` say how image and text embeddings are brought to unit variance before the network
    sees them, and which directions of the image embeddings it draws; without them L2-normalised embeddings are scaled
    by the square root of their length. `candidates`: how many embeddings a pipeline draws for a prompt unless it is
    told otherwise; it goes on with the best of them, see `models/candidates.py`. The paper draws two. `caption`: a text
    transformer whose states the network reads before everything else, as in the paper; without it the text embedding
    is all it knows of the caption. text_positions, time_projection: see `PriorTransformer`. empty: tokens of the
    caption that stands for none, where there is such a one.
    """

    target: Target = "eps"
    sigma_data: float | None = Field(default=1.0, gt=0, le=bounds.FACTOR)
    dim: int = Field(default=512, ge=1, le=bounds.WIDTH)
    width: int = Field(default=512, ge=1, le=bounds.WIDTH)
    depth: int = Field(default=6, ge=0, le=bounds.DEPTH)
    heads: int = Field(default=8, ge=1, le=bounds.WIDTH)
    refine: int = Field(default=0, ge=0, le=bounds.DEPTH)
    candidates: int = Field(default=2, ge=1, le=bounds.CANDIDATES)
    caption: TextConfig | None = None
    text_positions: int = Field(default=0, ge=0, le=bounds.CONTEXT)
    time_projection: bool = True
    empty: tuple[Annotated[int, Field(ge=0, le=bounds.TOKEN)], ...] | None = Field(None, max_length=bounds.CONTEXT)
    space: EmbeddingSpace | None = None
    text_space: EmbeddingSpace | None = None

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "PriorConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self

    @model_validator(mode="after")
    def _learns_no_variance(self) -> "PriorConfig":
        if self.learned_variance:
            raise ValueError("the prior learns no variance: leave learned_variance off, Analytic-DPM estimates one")
        return self


class Prior(Diffusion):
    """Diffusion over image embeddings, conditioned on text embeddings (DALL·E 2 paper, section 2.2).

    T, target, dim, width, depth, heads: of `PriorConfig`, which has the rest and may be given whole as `config`.

    Embeddings come in, and are drawn, as CLIP gives them; without a `space` of their own they are normalised, so that
    their length is of no matter. `x_t`, `eps` and `x_0` of a noised batch and of `forward` live in the space that
    `prior.space.to_model(z_img)` leads to, where each of the `dim` numbers has a standard deviation of about 1:
    normalised embeddings times sqrt(dim), 22.6 for 512. Noise of standard deviation 1 drowns embeddings of length 1.

    Raises ConfigError for settings that can't be, UsageError for some that contradict `config`.
    """

    kind = "prior"

    @plain_numbers
    @buildable
    def __init__(
        self,
        T: int | None = None,
        *,
        target: str | None = None,
        dim: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        config: PriorConfig | None = None,
    ) -> None:
        config = settled(PriorConfig, T, config, target=target, dim=dim, width=width, depth=depth, heads=heads)
        super().__init__(config, config.width)
        self.config = config
        self.space = config.space or unit_space(config.dim)
        self.text_space = config.text_space or unit_space(config.dim)
        self.network = PriorTransformer(
            config.dim,
            config.depth,
            config.heads,
            width=config.width,
            image_dim=self.space.width,
            refine=config.refine,
            text_dim=config.caption.width if config.caption else None,
            text_positions=config.text_positions,
            time_projection=config.time_projection,
        )
        self.caption = TextTransformer(config.caption) if config.caption else None
        self.null_text = torch.nn.Parameter(torch.zeros(config.dim))

    @classmethod
    def from_config(cls, config: PriorConfig) -> "Prior":
        """The untrained prior of these settings."""
        return cls(config.T, config=config)

    def forward(
        self,
        z_txt: Float[Tensor, "b {self.config.dim}"],
        x_t: Float[Tensor, "b {self.space.width}"],
        t_emb: Shaped[Tensor, "..."] | float,
        *,
        tokens: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b {self.space.width}"]:
        """One denoising step: the prediction for noised embeddings `x_t`, which live in the whitened space.

        t_emb: (B, width), of `time(t)`, or the timesteps t themselves. tokens: of the captions, where the prior reads
        them.
        """
        _, words = caption_conditions(self.caption, tokens)
        t_emb = self.timed(t_emb, len(x_t))
        answer = self.network(self.text_space.to_model(z_txt), x_t, t_emb, **_rows(words, len(x_t)))
        return self.completed(answer, x_t, t_emb)

    def noised(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Clean pairs `{z_txt, z_img}` to `{z_t, z_txt, t, eps}`, with `x_0` and the rows that lose their text.

        A prior that reads captions wants their `tokens` too.
        """
        require(batch, "z_txt", "z_img", *(["tokens"] if self.caption else []))
        batch = readable(batch, self)
        x_0 = self.space.to_model(batch["z_img"])
        z_t, t, eps = self.draw(x_0, generator)
        dropped = self.draw_dropped(len(x_0), self.config.drop, generator).to(x_0.device)
        words = {"tokens": batch["tokens"]} if self.caption else {}
        return {"z_t": z_t, "z_txt": batch["z_txt"], "t": t, "eps": eps, "x_0": x_0, "dropped": dropped, **words}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean squared error for a noised batch `{z_t, z_txt, t, eps}`."""
        require(batch, "z_t", "z_txt", "t")
        batch = readable(batch, self)
        text = self.text_space.to_model(batch["z_txt"])
        if "dropped" in batch:
            text = torch.where(batch["dropped"][:, None], self.null_text.to(text), text)
        t_emb = self.time(batch["t"])
        answer = self.network(text, batch["z_t"], t_emb, **self._words(batch))
        prediction = self.completed(answer, batch["z_t"], t_emb)
        return self.mse(prediction, self.wanted(batch["z_t"], batch["t"], batch))

    def _words(self, batch: Batch) -> dict[str, Tensor]:
        """The encoded captions of a training batch; rows that lose their text lose all of it."""
        if self.caption is None:
            return {}
        require(batch, "tokens")
        text = self.caption.read(batch["tokens"])
        return (text.without(batch["dropped"]) if "dropped" in batch else text)._asdict()

    @plain_numbers
    def denoiser(
        self,
        z_txt: Float[Tensor, "b d"],
        *,
        tokens: Int[Tensor, "b l"] | None = None,
        negative: Caption | None = None,
        guidance: float | None = None,
    ) -> Denoiser:
        """A denoiser in the whitened space; `guidance` 1 is off, None takes the default of the settings.

        tokens: of the captions, where the prior reads them. negative: what guidance leads away from, in place of no
        caption at all.
        """
        null_text = self.null_text[None] if negative is None else self.text_space.to_model(negative.z_txt)
        avoided = negative.tokens if negative else None
        no_words, words = caption_conditions(self.caption, tokens, avoided, self.config.empty)

        read = Once(self.network.read)

        def predict(
            x_t: Tensor, t: Tensor, text: Tensor, states: Tensor | None = None, valid: Tensor | None = None
        ) -> Tensor:
            t_emb = self.time(t)
            return self.completed(self.network(text, x_t, t_emb, read=read(text, states, valid)), x_t, t_emb)

        null, full = {"text": null_text, **no_words}, {"text": self.text_space.to_model(z_txt), **words}
        return self.guided(predict, [null, full], [self.weight(guidance)])

    @plain_numbers
    @torch.no_grad()
    def sample(
        self,
        z_txt: Float[Tensor, "b d"],
        t: int | None = None,
        eta: float = 0.0,
        *,
        sampler: Sampler | None = None,
        guidance: float | None = None,
        tokens: Int[Tensor, "b l"] | None = None,
        negative: Caption | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Image embeddings drawn for text embeddings in `t` steps, in the space that CLIP gives them."""
        drawn = self.sample_candidates(
            z_txt, 1, t, sampler=sampler, eta=eta, guidance=guidance, tokens=tokens, negative=negative,
            seeds=seeds, on_step=on_step,
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
        sampler: Sampler | None = None,
        eta: float = 0.0,
        guidance: float | None = None,
        tokens: Int[Tensor, "b l"] | None = None,
        negative: Caption | None = None,
        start: Float[Tensor, "b d"] | None = None,
        strength: float = 1.0,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Float[Tensor, "b {count} d"]:
        """`count` image embeddings for each text embedding, of which the first is what `sample` draws at eta 0.

        start: image embeddings that are drawn over: `strength`, above 0 and at most 1, of the noise's way is laid over
        them, and only the steps from there on are taken.
        """
        sampler = sampler or DDIMSampler(self.noise_scheduler)
        steps = self.default_steps if t is None else t
        noise = PictureNoise.fresh(len(z_txt), self.kind) if seeds is None else PictureNoise(seeds, self.kind)
        streams = [generator for generator in noise.generators for _ in range(count)]  # one a picture, read in turn
        x, timesteps = None, None
        if start is not None:
            x_0 = self.space.to_model(start.repeat_interleave(count, dim=0))
            x, timesteps = self.noised_start(x_0, strength, steps, PictureNoise.from_generators(streams))
        rows = z_txt.repeat_interleave(count, dim=0)
        against = negative.repeated(count) if negative else None
        denoiser = partial(self.denoiser, tokens=repeated(tokens, count), negative=against)
        x_0 = sampler.sample(
            Bound(self, self.kind, denoiser), rows, (len(rows), self.space.width), steps,
            eta=eta, guidance=guidance, start=x, timesteps=timesteps, generators=streams, on_step=on_step,
        )  # fmt: skip
        return rearrange(self.space.finish(self.space.from_model(x_0)), "(b k) d -> b k d", k=count)


def _rows(condition: Condition, rows: int) -> dict[str, Tensor]:
    """A condition of one row for all, as one for each."""
    return {name: value.expand(rows, *value.shape[1:]) for name, value in condition.items()}
