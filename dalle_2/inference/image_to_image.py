"""A picture drawn over: noised part of the way, and denoised towards a caption (SDEdit, Meng et al. 2022).

A decoder that works on a draft takes nearly everything from its embedding, and a picture under noise that it starts
from changes little. There the embedding is drawn over too: the prior starts from the picture's.
"""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.inference.latents import at_decoder_size
from dalle_2.inference.plans import EditSettings, Plan, draw, embedded, in_steps, stages_of, steerable_prior
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.scalars import plain_numbers
from dalle_2.text.prompts import check_prompts

STRENGTH = 0.7


@plain_numbers
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
    settings = in_steps(settings, pipeline.decoder)
    stages_of(pipeline, settings)  # what doesn't fit is refused before the prior's work
    over = _drawing_over(pipeline, image, n, strength, settings)
    z = embedded(pipeline, [prompt] * n, settings, seeds=seed, on_step=on_step, **over)
    (start,) = at_decoder_size(pipeline, [image])
    said = {"prompt": prompt, "strength": strength}
    plans = [Plan(z[k], seed + k, start, strength, prompt, metadata=said) for k in range(n)]
    return draw(pipeline, plans, "image to image", settings, on_step=on_step)


def _drawing_over(
    pipeline: DALLe2, image: Image.Image, n: int, strength: float, settings: EditSettings
) -> dict[str, Any]:
    """What `DALLe2.embed` starts from, where the decoder takes what it draws from its embedding."""
    prior = steerable_prior(pipeline, settings.prior)
    if prior is None:
        return {}
    assert settings.steps is not None
    z_img = pipeline.encode_images([image]).expand(n, -1)
    return {"start": z_img, "strength": strength, "steps": min(settings.steps, prior.noise_scheduler.T)}
