"""The model card that a training leaves beside its weights."""

from collections.abc import Mapping
from typing import Any

from dalle_2.training.recipe import Recipe, UpsamplerStage
from dalle_2.training.stages import STAGES, UPSAMPLERS

CARD = """# {name}

A DALL·E 2 pipeline trained by `dalle2 train`: CLIP, prior, decoder{upsampler}.

    dalle2 generate "your words" --pipeline THIS_FOLDER
    dalle2 evaluate --pipeline THIS_FOLDER{data_option}

## Data

{data}

## Recipe

| stage | pictures seen | parameters | minutes | learning rate | batch |
| --- | --- | --- | --- | --- | --- |
{stages}
{skipped}
Machine: {machine}. Minutes are each stage's own; on a CPU two stages may have trained at once.
Every setting is in `pipeline.json`, under `training`.
"""


def training_card(recipe: Recipe, provenance: Mapping[str, Mapping[str, Any]]) -> str:
    """`provenance`: of each trained stage, as its weight file holds it, with `parameters`."""
    rows = [_row(stage, provenance[stage]) for stage in STAGES if stage in provenance]
    machines = sorted({str(origin["machine"]) for origin in provenance.values()})
    return CARD.format(
        name=recipe.name,
        upsampler=("", " and upsampler", " and two upsamplers")[len({*UPSAMPLERS} & {*recipe.stages})],
        data=_data(recipe),
        data_option="" if recipe.data.source == "shapes" else " --data YOUR_PICTURES",
        stages="\n".join(rows),
        skipped=_skipped(provenance),
        machine="; ".join(machines),
    )


def _skipped(provenance: Mapping[str, Mapping[str, Any]]) -> str:
    lost = [f"{origin['skipped']} of {stage}" for stage, origin in provenance.items() if origin.get("skipped")]
    return f"\nSteps that were not finite and changed nothing: {', '.join(lost)}.\n" if lost else ""


def _row(stage: str, origin: Mapping[str, Any]) -> str:
    run = origin["run"]
    seen, weights = f"{origin['images']:,}", f"{origin['parameters'] / 1e6:.1f} M"
    return f"| {stage} | {seen} | {weights} | {origin['minutes']} | {run['lr']:g} | {run['batch']} |"


def _data(recipe: Recipe) -> str:
    encoder = recipe.clip.encoder or "a CLIP trained on the same captioned pictures"
    count = f", {recipe.embeddings:,} of them embedded" if recipe.embeddings else ""
    read = f"`{recipe.data.source}`{count}; pictures and captions are read by {encoder}."
    return " ".join([read, *_kept_out(recipe), *_aids(recipe)])


def _kept_out(recipe: Recipe) -> list[str]:
    share = recipe.data.options.get("held_out")
    return [f"{share:.0%} of the pictures were kept out of training, to measure on."] if share else []


def _aids(recipe: Recipe) -> list[str]:
    """What helped training beyond the paper's losses and conditions."""
    clip, aids = recipe.clip.config, []
    if recipe.data.clip_options.get("siblings", 1) > 1 and not recipe.clip.encoder:
        aids.append("CLIP saw every scene beside hard negatives that differ in one attribute or swap two.")
    if (clip.phrases or clip.thumbnail) and not recipe.clip.encoder:
        aids.append("Both its embeddings also had to tell the caption's phrases and a small copy of the picture.")
    if clip.centred and not recipe.clip.encoder:
        aids.append("Its embeddings are centred before they get unit length.")
    if recipe.draft is not None:
        aids.append("The decoder works on a draft, which a small generator draws from the embedding in one go.")
    if (count := recipe.prior.config.candidates) > 1:
        judged = ": each is drawn as a draft, and what CLIP sees in the best goes on" if recipe.draft else ""
        aids.append(f"For each picture the prior draws {count} embeddings, of which the best is kept{judged}.")
    aids += [words for name in UPSAMPLERS if (words := _degradation(name, getattr(recipe, name)))]
    return aids


def _degradation(name: str, stage: UpsamplerStage | None) -> str:
    """What an upsampler's small pictures went through, where that is more than a blur."""
    if stage is None or stage.config.degradation == "blur":
        return ""
    return f"The small pictures of {name} went through blurs, resizes, noise and JPEG in shuffled order (BSR)."
