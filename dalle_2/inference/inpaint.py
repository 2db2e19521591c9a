"""Painting into pictures: what a hole shows, and what lies beyond a picture's border."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.images import from_pil, to_pil
from dalle_2.inference.generation import Generation
from dalle_2.inference.held import PARTICLES, held_embedding
from dalle_2.inference.holes import Holed, check_hole, shrunk
from dalle_2.inference.plans import EditSettings, Plan, draw, embedded, in_steps, stages_of, steerable_prior
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.models.prior import Prior
from dalle_2.models.rest import at_work
from dalle_2.models.stages import checked_candidates
from dalle_2.scalars import plain_numbers
from dalle_2.text.prompts import check_prompts

OnFrame = Callable[[int, int], None]  # the number of a frame, from 1, and how many there are

CANDIDATES = 16  # embeddings to choose among where what is kept has no say in what the prior draws


@plain_numbers
def inpaint(
    pipeline: DALLe2,
    picture: Holed,
    prompt: str,
    n: int = 1,
    *,
    seed: int = 0,
    candidates: int | None = None,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """`n` pictures that show `prompt` as a whole and keep every pixel outside the hole.

    With a decoder that was trained to fill holes, its network sees what is kept; any other is held to it at each step.
    candidates: embeddings that the prior draws for each picture. Where the decoder has a draft they are steered towards
    what is kept, see `held_embedding`, by default 128 of them. Elsewhere, with an autoregressive prior and with a
    negative prompt, the prior knows only the caption: each of by default 16 is drawn small, and the one whose picture
    CLIP finds closest to the caption goes on. picture: with a hole, by `holed(picture, mask, pipeline.size)`. Picture k
    has seed + k.

    Raises UsageError for a picture without a hole, a hole that is nothing or all, a picture of another size, n or
    candidates below 1, and settings that don't fit.
    """
    if not isinstance(picture, Holed):
        raise UsageError(
            f"expected a picture with a hole, got {type(picture).__name__}: make one as holed(picture, mask, "
            "pipeline.size), of dalle_2.inference.holes, with a mask that is white where to paint"
        )
    (prompt,) = check_prompts([prompt])
    check_hole(picture.hole)
    if picture.picture.shape[-1] != pipeline.size:
        raise UsageError(f"got {picture.picture.shape[-1]} px, this pipeline makes {pipeline.size}: resize the picture")
    if n < 1:
        raise UsageError(f"n must be at least 1 picture, got {n}")
    if candidates is not None:
        checked_candidates(candidates)
    settings = settings or EditSettings()
    if pipeline.upsamplers and not settings.upsample:
        raise UsageError("what is kept has the size of the finished picture: leave upsample on")
    # One embedding is nothing to choose among, and guidance away from a negative prompt is left to the other way.
    several = settings.negative is None and candidates != 1
    prior = steerable_prior(pipeline, settings.prior) if several else None
    # Only over many steps does a decoder that wasn't trained for it draw towards what its embedding knows nothing of.
    told = prior is not None or pipeline.painter.fills_holes
    drawn = settings if told else in_steps(settings, pipeline.decoder)
    stages_of(pipeline, drawn, fills=True)  # what doesn't fit is refused before the prior's work
    plans = [
        _plan(pipeline, picture, prompt, seed + k, candidates or CANDIDATES, settings, on_step) if prior is None
        else _held_plan(pipeline, prior, picture, prompt, seed + k, candidates or PARTICLES, on_step)
        for k in range(n)
    ]  # fmt: skip
    return _kept(picture, draw(pipeline, plans, "inpainting", drawn, on_step=on_step))


def _kept(picture: Holed, generations: Iterator[Generation]) -> Iterator[Generation]:
    """The drawn pictures with the very pixels of the given one round the hole."""
    for generation in generations:
        drawn = from_pil(generation.image)
        yield replace(generation, image=to_pil(torch.where(picture.hole, drawn, picture.picture)))


def _held_plan(
    pipeline: DALLe2, prior: Prior, picture: Holed, prompt: str, seed: int, candidates: int, on_step: OnStep | None
) -> Plan:
    small = _small(pipeline, picture)
    watch = None if on_step is None else lambda step: on_step("prior", step)
    caption = pipeline._captions([prompt])
    with at_work(prior, pipeline.decoder), torch.autocast(pipeline.device.type, enabled=False):
        z = held_embedding(pipeline, prior, caption, small, seed=seed, particles=candidates, on_step=watch)
    said = {"prompt": prompt, "candidates": candidates, "steered": True}
    return Plan(z, seed, caption=prompt, known=small.picture, hole=small.hole, metadata=said)


def _small(pipeline: DALLe2, picture: Holed) -> Holed:
    small = shrunk(picture, pipeline.decoder.config.image_size)
    return Holed(small.picture.to(pipeline.device), small.hole.to(pipeline.device))


def _plan(
    pipeline: DALLe2,
    picture: Holed,
    prompt: str,
    seed: int,
    candidates: int,
    settings: EditSettings,
    on_step: OnStep | None,
) -> Plan:
    small = _small(pipeline, picture)
    seeds = [seed * candidates + k for k in range(candidates)]
    z = embedded(pipeline, [prompt] * candidates, settings, seeds=seeds, candidates=1, on_step=on_step)
    said = {"prompt": prompt, "candidates": candidates}
    tries = [Plan(row, seed, caption=prompt, known=small.picture, hole=small.hole, metadata=said) for row in z]
    if len(tries) == 1:
        return tries[0]
    quick = settings.model_copy(update={"upsample": False})
    images = [generation.image for generation in draw(pipeline, tries, "inpainting", quick, on_step=on_step)]
    seen = pipeline._encode_images(images)
    text = pipeline._encode_text([prompt])
    return tries[int(F.cosine_similarity(seen, text).argmax())]


@plain_numbers
def outpaint(
    pipeline: DALLe2,
    picture: Image.Image | Float[Tensor, "3 s s"],
    prompt: str,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    seed: int = 0,
    candidates: int | None = None,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
    on_frame: OnFrame | None = None,
) -> Generation:
    """The picture continued beyond its borders by so many pixels, every pixel of it kept.

    A frame of the pipeline's size moves over the larger canvas, and whatever is still empty in it is painted; the
    caption says what each frame shows. picture: brought to the size that the pipeline makes, which a tensor in [-1, 1]
    must have. candidates: for each frame, as in `inpaint`. on_frame: called before each frame. Raises UsageError for a
    tensor of another size, no side to continue, and sides beyond half a frame.
    """
    size = pipeline.size
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    wrong = [name for name, pixels in sides.items() if not 0 <= pixels <= size // 2]
    if wrong or not any(sides.values()):
        got = ", ".join(f"{name} {pixels}" for name, pixels in sides.items())
        raise UsageError(f"at least one side must be continued, each by at most {size // 2} pixels, got {got}")
    canvas = F.pad(_square(picture, size), (left, right, top, bottom))
    inside = torch.zeros(1, size, size, dtype=torch.bool, device="cpu")
    empty = F.pad(inside, (left, right, top, bottom), value=True)
    _, *around = frames(canvas.shape[1:], (top, left), size)  # the first frame is the picture itself
    for number, (y, x) in enumerate(around, 1):
        if on_frame is not None:
            on_frame(number, len(around))
        window = (slice(None), slice(y, y + size), slice(x, x + size))
        part = Holed(canvas[window], empty[window])
        (made,) = inpaint(
            pipeline, part, prompt, seed=seed + number, candidates=candidates, settings=settings, on_step=on_step
        )
        canvas[window] = from_pil(made.image)
        empty[window] = False
    image = to_pil(canvas)
    size_now = f"{image.width}x{image.height}"
    metadata = {**made.metadata, "task": "outpainting", "seed": seed, **sides, "size": size_now}
    return Generation(0, prompt, seed, image, metadata)


def _square(picture: Image.Image | Tensor, size: int) -> Float[Tensor, "3 s s"]:
    if not isinstance(picture, Tensor):
        return from_pil(picture, size)
    if tuple(picture.shape) != (3, size, size):
        raise UsageError(f"got a picture of {tuple(picture.shape[1:])} px, this pipeline makes {size}: resize it")
    return picture


def frames(canvas: Sequence[int], corner: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """The corners of the frames that cover a canvas, those nearest to the picture first: sides before corners."""
    rows = sorted({0, corner[0], canvas[0] - size}, key=lambda y: abs(y - corner[0]))
    columns = sorted({0, corner[1], canvas[1] - size}, key=lambda x: abs(x - corner[1]))
    places = [(y, x) for y in rows for x in columns]
    return sorted(places, key=lambda place: (place[0] != corner[0]) + (place[1] != corner[1]))
