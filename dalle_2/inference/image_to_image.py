"""A picture drawn over: noised part of the way, and denoised towards a caption (SDEdit, Meng et al. 2022)."""

from collections.abc import Iterator

from PIL import Image

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.inference.latents import at_decoder_size
from dalle_2.inference.plans import EditSettings, Plan, draw, embedded, in_steps
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.text.prompts import check_prompts

STRENGTH = 0.7


def image_to_image(
    pipeline: DALLe2,
    image: Image.Image,
    prompt: str,
    n: int = 1,
    *,
    strength: float = STRENGTH,
    seed: int = 0,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """`n` pictures that begin as the given one under noise and end as what the prompt says.

    strength: the share of the noise's way that is laid over it, above 0 and at most 1, where nothing of it is left.
    Picture k has seed + k. Raises UsageError for a strength outside that, n below 1, and settings that don't fit.
    """
    (prompt,) = check_prompts([prompt])
    if not 0 < strength <= 1:
        raise UsageError(f"strength must lie above 0 and at most at 1, got {strength}: 1 leaves nothing of the picture")
    if n < 1:
        raise UsageError(f"n must be at least 1 picture, got {n}")
    z = embedded(pipeline, [prompt] * n, settings, seeds=seed, on_step=on_step)
    (start,) = at_decoder_size(pipeline, [image])
    said = {"prompt": prompt, "strength": strength}
    plans = [Plan(z[k], seed + k, start, strength, prompt, metadata=said) for k in range(n)]
    return draw(pipeline, plans, "image to image", in_steps(settings, pipeline.decoder), on_step=on_step)
