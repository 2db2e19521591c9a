"""The typographic attack: a written word that CLIP takes for the thing (DALL·E 2 paper, section 4, figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dalle_2.errors import UsageError
from dalle_2.images import check_picture, flattened, lacking
from dalle_2.models.dalle2 import DALLe2
from dalle_2.text.prompts import check_prompts

SCALE = 100.0  # CLIP's largest temperature, where its pipeline doesn't say its own
LABEL = 0.45  # width of the label, as a share of the picture's


@dataclass(frozen=True)
class Probe:
    """What CLIP takes a picture for, before and after a word was written on it: a probability for each label."""

    labels: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    attacked: Image.Image

    @property
    def fooled(self) -> bool:
        """Whether the most probable label changed."""
        return self.before.index(max(self.before)) != self.after.index(max(self.after))


def probe(pipeline: DALLe2, image: Image.Image, word: str, labels: Sequence[str]) -> Probe:
    """Writes `word` on the picture and asks CLIP, both times, which of the labels it shows.

    Raises UsageError for fewer than two labels, an empty word, and one that `labelled` can't write.
    """
    listed = check_prompts(labels, "label")
    if len(listed) < 2:
        raise UsageError(f"CLIP chooses among labels: give at least 2, got {len(listed)}")
    (word,) = check_prompts([word], "word")
    attacked = labelled(image, word)
    before, after = classified(pipeline, [image, attacked], listed).tolist()
    return Probe(tuple(listed), tuple(before), tuple(after), attacked)


@torch.no_grad()
def classified(pipeline: DALLe2, images: Sequence[Image.Image], labels: Sequence[str]) -> Tensor:
    """Zero-shot probabilities of labels, a row a picture (Radford et al. 2021, section 3.1)."""
    z_img = torch.nn.functional.normalize(pipeline._encode_images(list(images)), dim=-1)
    z_txt = torch.nn.functional.normalize(pipeline._encode_text(list(labels)), dim=-1)
    log_scale = getattr(getattr(pipeline.clip_encoder, "model", None), "log_scale", None)
    scale = SCALE if log_scale is None else float(log_scale.exp())
    return (scale * z_img @ z_txt.T).softmax(dim=-1).cpu()


def labelled(image: Image.Image, word: str) -> Image.Image:
    """The picture with a white label in its middle that says the word.

    Raises UsageError for a word that is too long for the picture, or has signs that the font lacks.
    """
    check_picture(image)
    picture = flattened(image).copy()
    width = round(LABEL * picture.width)
    font = ImageFont.load_default(_fitting(word, width))
    if font.getlength(word) > picture.width:
        raise UsageError(f"{word!r} is too long for a picture {picture.width} pixels wide: write a shorter word")
    if missing := lacking(font, word):
        raise UsageError(f"the font has no sign for {missing[0]!r}: write the word in Latin letters")
    box = ImageDraw.Draw(picture).textbbox((0, 0), word, font=font)
    size = (box[2] - box[0] + 8, box[3] - box[1] + 8)
    left, top = (picture.width - size[0]) // 2, (picture.height - size[1]) // 2
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, left + size[0], top + size[1]), fill=(255, 255, 255))
    draw.text((left + 4 - box[0], top + 4 - box[1]), word, fill=(0, 0, 0), font=font)
    return picture


def _fitting(word: str, width: int) -> int:
    """The largest type size at which the word is no wider than that, at least 6 pixels."""
    sizes = range(6, max(7, width))
    return max((size for size in sizes if ImageFont.load_default(size).getlength(word) <= width), default=6)
