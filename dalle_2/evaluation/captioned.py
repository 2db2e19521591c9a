"""How well a pipeline follows the captions of somebody's own pictures, by what its CLIP says of what it draws."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_2.data.abs_dataset import Example
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError
from dalle_2.evaluation.evaluate import Settings
from dalle_2.evaluation.intervals import Z
from dalle_2.evaluation.retrieval import Ranks, ranks
from dalle_2.images import grid, to_pils
from dalle_2.models.dalle2 import DALLe2

SHOWN, SIDE, GAP = 30, 128, 4  # pairs on the sheet; pixels of a picture there, and between the two of a pair


class Mean(NamedTuple):
    """A mean and its 95 % interval, by the normal approximation."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """One picture of the folder: the cosines of CLIP between its caption and what was drawn, and the picture itself."""

    file: str
    caption: str
    seed: int
    drawn: float
    true: float


@dataclass
class Measured:
    """What was measured.

    drawn, shuffled, true: the cosine of CLIP's embeddings between a drawn picture and its caption; between a drawn
    picture and the captions of others, which is chance (None where all captions are the same); and between a picture of
    the folder and its caption, which is what drawing can be expected to reach. retrieval: where the own picture comes
    among all by its closeness to what the decoder drew from; `of` says what that was (None for true embeddings).
    """

    rows: list[Row]
    drawn: Mean
    shuffled: Mean | None
    true: Mean
    of: str
    retrieval: Ranks | None
    seconds: float
    pairs: list[Image.Image] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with each picture's own."""
        similarity = {"drawn": self.drawn, "shuffled": self.shuffled, "true": self.true}
        return {
            "n": len(self.rows),
            "clip_similarity": {name: mean and mean._asdict() for name, mean in similarity.items()},
            "retrieval": self.retrieval and {"of": self.of, **self.retrieval.as_json()},
            "seconds": round(self.seconds, 1),
            "pictures": [row._asdict() for row in self.rows],
        }


def measure(
    pipeline: DALLe2,
    folder: ImageFolder,
    rows: Sequence[int],
    settings: Settings,
    *,
    on_pictures: Callable[[int], None] | None = None,
) -> Measured:
    """Draws one picture for the caption of each of these pictures; the k-th that can be read has seed `seed + k`.

    on_pictures: told how many more are done. Raises DataError where fewer than two can be read.
    """
    began, z, pairs, said = time.monotonic(), list[Vectors](), list[Image.Image](), list[tuple[str, str]]()
    for start in range(0, len(rows), settings.batch):
        part = rows[start : start + settings.batch]
        read = [(row, example) for row in part if (example := folder.read(row)) is not None]
        if read:
            seeds = [settings.seed + len(said) + k for k in range(len(read))]
            vectors, drawn = _drawn(pipeline, [example for _, example in read], settings, seeds)
            z.append(vectors)
            said += [(folder.file(row), example.caption) for row, example in read]
            pairs += [_pair(example, picture) for (_, example), picture in zip(read, drawn, strict=True)]
            pairs = pairs[:SHOWN]
        if on_pictures:
            on_pictures(len(part))
    if len(said) < 2:
        raise DataError(f"{len(said)} of {len(rows)} pictures can be read, and measuring takes two: repair or add some")
    return _measured(pipeline, _joined(z), said, settings, pairs, time.monotonic() - began)


class Vectors(NamedTuple):
    """Unit vectors of CLIP, (n, d): of captions, true pictures, drawn pictures, and what these were drawn from."""

    caption: Float[Tensor, "n d"]
    true: Float[Tensor, "n d"]
    drawn: Float[Tensor, "n d"]
    source: Float[Tensor, "n d"]


def _joined(parts: Sequence[Vectors]) -> Vectors:
    return Vectors(*(F.normalize(torch.cat(vectors).float().cpu(), dim=-1) for vectors in zip(*parts, strict=True)))


@torch.no_grad()
def _drawn(
    pipeline: DALLe2, examples: Sequence[Example], settings: Settings, seeds: Sequence[int]
) -> tuple[Vectors, list[Image.Image]]:
    """A picture for each caption, by the same way as `DALLe2.generate`, and all the embeddings that meet on it."""
    captions = [example.caption for example in examples]
    true = pipeline._encode_images([Image.fromarray(example.image) for example in examples])
    source = true
    if settings.embeddings != "image":
        source = pipeline.embed(
            captions, settings.steps, seeds=seeds, use_prior=settings.embeddings == "prior", prior=settings.prior,
            candidates=settings.candidates,
        )  # fmt: skip
    sampler = {"decoder": settings.sampler} if settings.sampler else None
    x = pipeline.decode(
        source, settings.steps, seeds=seeds, guidance=settings.guidance, sampler=sampler, captions=captions
    )
    if pipeline.upsamplers:
        x = pipeline.upscale(x, source, settings.steps, seeds=seeds)
    pictures = to_pils(x.float().cpu())
    return Vectors(pipeline._encode_text(captions), true, pipeline._encode_images(pictures), source), pictures


def _measured(
    pipeline: DALLe2, z: Vectors, said: Sequence[tuple[str, str]], settings: Settings, pairs: list[Image.Image],
    seconds: float,
) -> Measured:  # fmt: skip
    captions = [caption for _, caption in said]
    own, true = (z.drawn * z.caption).sum(-1).tolist(), (z.true * z.caption).sum(-1).tolist()
    others = torch.tensor([[a != b for b in captions] for a in captions], dtype=torch.bool, device="cpu")
    shuffled = [row[of].mean().item() for row, of in zip(z.drawn @ z.caption.T, others, strict=True) if of.any()]
    of = "image" if settings.embeddings == "image" else "text"
    if settings.embeddings == "prior" and pipeline._planned_first_prior(settings.prior) is not None:
        of = "prior"
    rows = [
        Row(file, caption, settings.seed + k, round(own[k], 4), round(true[k], 4))
        for k, (file, caption) in enumerate(said)
    ]
    return Measured(
        rows, _mean(own), _mean(shuffled) if shuffled else None, _mean(true), of,
        None if of == "image" else ranks(z.source, z.true), seconds, pairs,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> Mean:
    x = torch.tensor(values, dtype=torch.float64, device="cpu")
    reach = Z * x.std().item() / math.sqrt(len(x)) if len(x) > 1 else 0.0
    return Mean(x.mean().item(), x.mean().item() - reach, x.mean().item() + reach)


# What people look at


def table(measured: Measured) -> str:
    """The figures as Markdown, each with what chance would give or what there is to reach."""
    lines = ["| measured | figure | 95 % interval |", "| --- | --- | --- |"]
    lines += [
        _line("CLIP similarity of drawn pictures to their captions", measured.drawn),
        _line("the same to the captions of others (chance)", measured.shuffled),
        _line("of the true pictures to their captions (to be reached)", measured.true),
    ]
    if (found := measured.retrieval) is not None:
        whose = {"prior": "the prior's embedding", "text": "the caption's embedding"}[measured.of]
        lines += [
            f"| {whose} is closest to the own picture's (chance {100 * found.chance_first:.1f} %) "
            f"| {100 * found.first:.1f} % | – |",
            f"| median rank of the own picture of {found.n} (chance {found.chance_median:g}) | {found.median:g} | – |",
        ]
    return "\n".join(lines)


def _line(what: str, mean: Mean | None) -> str:
    if mean is None:
        return f"| {what} | – | all captions are the same |"
    return f"| {what} | {mean.value:.3f} | {mean.low:.3f}–{mean.high:.3f} |"


def sheet(measured: Measured) -> Image.Image:
    """The first pictures, true on the left and drawn on the right, above their captions."""
    return grid(measured.pairs, columns=5, labels=[row.caption for row in measured.rows[: len(measured.pairs)]])


def _pair(example: Example, drawn: Image.Image) -> Image.Image:
    both = Image.new("RGB", (2 * SIDE + GAP, SIDE), (255, 255, 255))
    for left, picture in ((0, Image.fromarray(example.image)), (SIDE + GAP, drawn)):
        both.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, 0))
    return both
