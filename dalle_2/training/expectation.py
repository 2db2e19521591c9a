"""What a person is told before a training begins: what will run, on what, and what to hope for."""

from pathlib import Path

from dalle_2.training.recipe import Recipe


def expectation(recipe: Recipe, folder: Path) -> str:
    """A few lines: the data, the encoder, the stages with their lengths, and an honest word on the result."""
    lines = [f"training {recipe.name} on {recipe.data.source.removeprefix('folder:')}, into {folder}"]
    lines.append(_encoder_words(recipe))
    if share := recipe.data.options.get("held_out"):
        lines.append(f"{share:.0%} of the pictures are kept out, for dalle2 evaluate --data to measure on")
    elif recipe.data.source != "shapes":
        lines.append("it learns from all pictures: --held-out 0.1 keeps some for dalle2 evaluate --data to measure on")
    for stage in recipe.stages:
        run = getattr(recipe, stage).run
        if not (stage == "clip" and recipe.clip.encoder):
            lines.append(f"  {stage}: {run.images:,} images in batches of {run.batch}")
    lines.append(f"of each stage, {folder / 'run'}/STAGE holds log.jsonl and, of some, samples")
    lines.append("stop it with Ctrl-C whenever you like; the same command goes on where it stopped")
    return "\n".join(lines)


def _encoder_words(recipe: Recipe) -> str:
    if recipe.clip.encoder:
        return f"pictures and captions are understood by {recipe.clip.encoder}, which knows the world already"
    if recipe.data.source == "shapes":
        return "a CLIP of its own is trained first, on the same pictures"
    return (
        "no trained CLIP is in the local cache, so a small one is trained on your pictures first: expect pictures that "
        "resemble yours for captions that resemble yours, and little beyond; with OpenCLIP's ViT-B/32 in the cache "
        "(see `dalle2 doctor`) new words would mean something"
    )
