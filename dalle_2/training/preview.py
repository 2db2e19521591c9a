"""Sample grids: what a decoder or an upsampler makes of a few pairs while it learns."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor, nn

from dalle_2.data.embeddings import EmbeddedImages
from dalle_2.images import grid, to_pils
from dalle_2.models.upsampler import Upsampler, enlarge, shrink
from dalle_2.sampling.sampler import Sampler

PREVIEWS = 8


def preview_of(images: EmbeddedImages) -> Callable[[nn.Module], Image.Image]:
    """Draws the grid of the first pictures, the same ones every time, so that the grids of a run can be compared."""
    shown = images.batch(range(min(PREVIEWS, len(images))))
    return lambda model: sample_grid(model, shown)


def sample_grid(model: nn.Module, batch: dict[str, Tensor], sampler: Sampler | None = None) -> Image.Image:
    """A column for each of the first pairs `{z_img, image}` of a batch.

    A decoder's pictures stand below the true ones; an upsampler's between the enlarged small ones and the true ones.
    """
    device = next(model.parameters()).device
    true, z_img = (batch[name][:PREVIEWS].to(device) for name in ("image", "z_img"))
    seeds = range(len(true))
    if isinstance(model, Upsampler):
        low_res = shrink(true, model.config.scale)
        rows = [enlarge(low_res, true.shape[-2:]), model.sample(z_img, low_res, sampler=sampler, seeds=seeds), true]
    else:
        reads = getattr(model, "caption", None) is not None
        words = {"tokens": batch["tokens"][:PREVIEWS].to(device)} if reads else {}
        rows = [true, model.sample(z_img, sampler=sampler, seeds=seeds, **words)]  # type: ignore[operator]
    return grid([picture for row in rows for picture in to_pils(row.cpu())], columns=len(true))


def shown(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What a sample grid needs of a batch, clean or noised; None where it has no pictures of the model's size."""
    image = batch.get("image", batch.get("x_0"))
    if image is None or "z_img" not in batch or image.shape[-1] != model.config.image_size:  # type: ignore[union-attr]
        return None
    return {**batch, "image": image}
