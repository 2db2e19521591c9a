"""How a picture was made, as plain values for its metadata."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from dalle_2 import __version__
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.glide import Glide
from dalle_2.models.stages import StageSettings


def record(pipeline: DALLe2 | Glide, plan: Mapping[str, StageSettings], image: Image.Image) -> dict[str, Any]:
    """All that the picture hangs on besides its prompt and its seed. plan: the stages' settings."""
    return {
        "pipeline": pipeline.name,
        "pipeline_sha256": pipeline.fingerprint,
        "steps": {name: stage.steps for name, stage in plan.items()},
        "sampler": {name: stage.sampler for name, stage in plan.items()},
        "guidance": {name: stage.guidance for name, stage in plan.items()},
        **({"candidates": plan["prior"].candidates} if "prior" in plan else {}),
        **_tokens(plan.get("prior")),
        **_drawing(plan.get("decoder")),
        **_where_chosen(plan, "noise_level", "tile", "overlap"),
        "eta": max(stage.eta for stage in plan.values()),
        "size": f"{image.width}x{image.height}",
        "device": pipeline.device.type,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "dalle_2": __version__,
        "torch": torch.__version__,
    }


def _tokens(run: StageSettings | None) -> dict[str, Any]:
    """How an autoregressive prior drew, where it was asked for."""
    return {} if run is None or run.tokens is None else dict(run.tokens.given)


def _drawing(run: StageSettings | None) -> dict[str, Any]:
    """What only a decoder has, where it was asked for."""
    given = {} if run is None else {"text_guidance": run.text_guidance, "threshold": run.thresholding}
    return {name: value for name, value in given.items() if value is not None}


def _where_chosen(plan: Mapping[str, StageSettings], *names: str) -> dict[str, dict[str, int]]:
    """The settings of these names by stage, without those that are None."""
    values = {name: {stage: getattr(run, name) for stage, run in plan.items()} for name in names}
    chosen = {name: {stage: v for stage, v in one.items() if v is not None} for name, one in values.items()}
    return {name: one for name, one in chosen.items() if one}
