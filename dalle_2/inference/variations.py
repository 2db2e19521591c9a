"""Other pictures of the same content and style (DALL·E 2 paper, section 3.1)."""

from collections.abc import Iterator, Sequence

from PIL import Image

from dalle_2.errors import UsageError
from dalle_2.inference.generation import Generation
from dalle_2.inference.latents import encoded
from dalle_2.inference.plans import EditSettings, Plan, draw, inverting
from dalle_2.models.dalle2 import DALLe2, OnStep
from dalle_2.scalars import plain_numbers

FRESH = 0.8  # eta: enough noise in each step that a variation isn't a copy


@plain_numbers
def variations(
    pipeline: DALLe2,
    images: Sequence[Image.Image] | Image.Image,
    n: int = 4,
    *,
    seed: int = 0,
    settings: EditSettings | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Generation]:
    """`n` variations of each picture: encoded, inverted, and drawn again with fresh noise in each step; a
    lone picture is one.

    settings.eta says how far they go: 0 gives the picture back, as well as the decoder knows it; by default 0.8.
    Picture k of all has seed + k. Raises UsageError for no pictures, n below 1, and settings that don't fit.
    """
    if n < 1:
        raise UsageError(f"n must be at least 1 variation of each picture, got {n}")
    images = [images] if isinstance(images, Image.Image) else images
    settings = settings or EditSettings()
    if "eta" not in settings.model_fields_set:  # its own default would give copies
        settings = settings.model_copy(update={"eta": FRESH})
    settings = inverting(settings, pipeline.decoder)
    latents = encoded(pipeline, images, settings.steps, on_step=on_step)
    plans = [
        Plan(latents.z_img[k // n], seed + k, latents.x_T[k // n], metadata={"picture": k // n})
        for k in range(n * len(images))
    ]
    return draw(pipeline, plans, "variation", settings, on_step=on_step)
