"""Pictures that are smaller than what an upsampler is to draw: they teach it no detail."""

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.image_folder import ImageFolder
from dalle_2.training.recipe import Recipe
from dalle_2.training.stages import UPSAMPLERS

LOOKED_AT = 200  # pictures, evenly over the folder


def small_pictures(recipe: Recipe, dataset: AbsDataset) -> str | None:
    """A sentence where there are such pictures in a folder, by a share of them; else None."""
    sizes = [getattr(recipe, name).config.image_size for name in UPSAMPLERS if getattr(recipe, name) is not None]
    if not sizes or not isinstance(dataset, ImageFolder) or "://" in recipe.data.source:
        return None
    rows = range(0, len(dataset), max(1, len(dataset) // LOOKED_AT))[:LOOKED_AT]
    sides = [side for row in rows if (side := dataset.shorter_side(row)) is not None]
    small = [side for side in sides if side < max(sizes)]
    if not small:
        return None
    looked = "" if len(rows) == len(dataset) else " that were looked at"
    return (
        f"{len(small)} of {len(sides)} pictures{looked} are smaller than the {max(sizes)} px that the upsampler learns "
        f"to draw, down to {min(small)} px: they are enlarged for it, and show it no detail"
    )
