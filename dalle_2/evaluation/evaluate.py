"""How well a pipeline follows its captions: pictures for fixed scenes of Shapes, read back and judged."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_2.data.captions import Statement
from dalle_2.data.render import render
from dalle_2.data.scenes import Scene
from dalle_2.data.shapes import EVALUATION_SEED, fixed_scenes
from dalle_2.errors import UsageError
from dalle_2.evaluation.exact_match import ATTRIBUTES, Verdict, aggregate, judge
from dalle_2.evaluation.intervals import Rate
from dalle_2.evaluation.scene_parser import parse
from dalle_2.images import grid, to_pils
from dalle_2.models.dalle2 import DALLe2

READ_AT = 256
Embeddings = Literal["prior", "text", "image"]
SOURCES = {
    "prior": "by the prior", "text": "replaced by text embeddings", "image": "of true pictures (an upper bound)",
}  # fmt: skip


class Question(NamedTuple):
    """One line of the report: scenes of a split with so many objects."""

    name: str
    split: str
    objects: int


QUESTIONS = (
    Question("a", "seen", 2),
    Question("b", "pairing", 2),
    Question("c", "unseen", 2),
    Question("one object", "seen", 1),
)


@dataclass(frozen=True)
class Settings:
    """embeddings: where the decoder's image embedding comes from: the prior, the bare text embedding, or (as an upper
    bound) CLIP's embedding of a true picture. steps, guidance, sampler (the decoder's), prior ("diffusion" or "ar")
    and its candidates: None for the pipeline's defaults. batch: scenes at a time. Raises UsageError for values that
    make no sense.
    """

    n: int = 500
    seed: int = EVALUATION_SEED
    embeddings: Embeddings = "prior"
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    prior: Literal["diffusion", "ar"] | None = None
    candidates: int | None = None
    batch: int = 20

    def __post_init__(self) -> None:
        if self.embeddings not in get_args(Embeddings):
            raise UsageError(f"embeddings must be one of {', '.join(get_args(Embeddings))}, got {self.embeddings!r}")
        if min(self.n, self.batch) < 1:
            raise UsageError(f"n and batch must be at least 1 scene, got {self.n} and {self.batch}")
        if self.embeddings != "prior" and (self.prior, self.candidates) != (None, None):
            raise UsageError(f"prior and candidates are for embeddings by the prior, got {self.embeddings!r}")

    @property
    def described(self) -> str:
        """The settings in words, for reports."""
        return f"{self.n} scenes a row, {self.ways}"

    @property
    def ways(self) -> str:
        """How pictures are drawn, in words."""
        parts = [f"seed {self.seed}", f"image embeddings {SOURCES[self.embeddings]}"]
        parts += [] if self.steps is None else [f"steps {self.steps}"]
        parts += [] if self.guidance is None else [f"guidance {self.guidance:g}"]
        parts += [] if self.sampler is None else [f"decoder sampler {self.sampler}"]
        parts += [] if self.prior is None else [f"prior {self.prior}"]
        parts += [] if self.candidates is None else [f"{self.candidates} candidates"]
        return ", ".join(parts)


@dataclass
class Result:
    """The answer to one question."""

    question: Question
    rates: dict[str, Rate]
    clip_similarity: float
    seconds: float
    captions: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values: rates with their 95 % intervals, and what went wrong picture by picture."""
        rows = [
            {"caption": caption, **asdict(verdict)}
            for caption, verdict in zip(self.captions, self.verdicts, strict=True)
        ]
        return {
            "question": self.question._asdict(),
            "rates": {name: rate._asdict() for name, rate in self.rates.items()},
            "clip_similarity": self.clip_similarity,
            "seconds": round(self.seconds, 1),
            "pictures": rows,
        }


def evaluate(
    pipeline: DALLe2,
    question: Question,
    settings: Settings | None = None,
    *,
    on_pictures: Callable[[int], None] | None = None,
) -> Result:
    """Draws one picture for each of `settings.n` fixed scenes, reads and judges it. Picture k has seed `seed + k`.

    on_pictures: told how many more are done. Raises UsageError for a split that doesn't exist.
    """
    settings = settings or Settings()
    scenes = fixed_scenes(question.split, settings.n, objects=question.objects, seed=settings.seed)
    began = time.monotonic()
    result = Result(question, {}, 0.0, 0.0)
    similarities: list[float] = []
    for rows in _batches(len(scenes), settings.batch):
        some = [scenes[row] for row in rows]
        drawn = draw(pipeline, some, settings, seeds=[settings.seed + row for row in rows])
        pictures = [_readable(picture) for picture in to_pils(drawn.float().cpu())]
        result.pictures += pictures
        result.captions += [statement.text for _, statement in some]
        result.verdicts += [
            judge(parse(_pixels(picture)), statement) for picture, (_, statement) in zip(pictures, some, strict=True)
        ]
        similarities += _similarities(pipeline, pictures, some)
        if on_pictures:
            on_pictures(len(some))
    result.rates = aggregate(result.verdicts)
    result.clip_similarity = float(np.mean(similarities))
    result.seconds = time.monotonic() - began
    return result


def draw(
    pipeline: DALLe2, scenes: Sequence[tuple[Scene, Statement]], settings: Settings, *, seeds: Sequence[int]
) -> Float[Tensor, "n 3 h w"]:
    """One picture a scene, by the way that `settings.embeddings` says."""
    captions = [statement.text for _, statement in scenes]
    sampler = {"decoder": settings.sampler} if settings.sampler else None
    if settings.embeddings != "image":
        return pipeline.generate(
            captions, settings.steps, seeds=seeds, guidance=settings.guidance, sampler=sampler,
            use_prior=settings.embeddings == "prior", prior=settings.prior, candidates=settings.candidates,
            micro_batch=len(captions),
        )  # fmt: skip
    true = [Image.fromarray(render(scene, READ_AT)) for scene, _ in scenes]
    z_img = pipeline._encode_images(true)
    small = pipeline.decode(
        z_img, settings.steps, seeds=seeds, guidance=settings.guidance, sampler=sampler, captions=captions
    )
    return pipeline.upscale(small, z_img, settings.steps, seeds=seeds) if pipeline.upsamplers else small


def table(results: Sequence[Result]) -> str:
    """The rates in per cent, as Markdown: exact match with its 95 % interval, the parts, CLIP similarity."""
    names = [name for name in ATTRIBUTES if name != "exact"]
    head = ["scenes", "n", "exact match", *names, "unreadable", "CLIP similarity"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for result in results:
        exact = result.rates["exact"]
        cells = [result.question.name, str(exact.n), _interval(exact)]
        cells += [_percent(result.rates[name]) for name in (*names, "unreadable")]
        lines.append("| " + " | ".join([*cells, f"{result.clip_similarity:.3f}"]) + " |")
    return "\n".join(lines)


def sheet(result: Result, most: int = 60) -> Image.Image:
    """The first pictures with their captions; failures have a red frame."""
    small = [picture.resize((128, 128), Image.Resampling.LANCZOS) for picture in result.pictures[:most]]
    marks = [not verdict.exact for verdict in result.verdicts[:most]]
    return grid(small, columns=10, labels=result.captions[:most], marks=marks)


def _batches(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _readable(picture: Image.Image) -> Image.Image:
    """A picture of another size than 256 px is enlarged (or shrunk) before it is read."""
    return picture if picture.width == READ_AT else picture.resize((READ_AT, READ_AT), Image.Resampling.BICUBIC)


def _pixels(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(picture.convert("RGB"))


@torch.no_grad()
def _similarities(
    pipeline: DALLe2, pictures: list[Image.Image], scenes: Sequence[tuple[Scene, Statement]]
) -> list[float]:
    """The cosine between the pipeline's own CLIP embeddings of picture and caption."""
    z_img = pipeline._encode_images(pictures)
    z_txt = pipeline._encode_text([statement.text for _, statement in scenes])
    return F.cosine_similarity(z_img, z_txt, dim=-1).tolist()


def _percent(rate: Rate) -> str:
    return "–" if rate.value is None else f"{100 * rate.value:.1f}"


def _interval(rate: Rate) -> str:
    if rate.value is None or rate.low is None or rate.high is None:
        return "–"
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f}–{100 * rate.high:.1f})"
