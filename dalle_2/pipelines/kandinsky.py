"""The priors of Kandinsky 2.1 and 2.2 in the layout of diffusers -> a `DALLe2` that has no decoder yet.

They are Karlo's prior in another folder. Their own decoders draw latents, which this package has no networks for; any
decoder of ours that was trained on the embeddings of the same CLIP can be put in their place.
"""

from pathlib import Path
from typing import Any

from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.placement import Placement
from dalle_2.pipelines.find import FOREIGN as INDEX
from dalle_2.pipelines.karlo import CLASSES, KarloParts, pipeline_of
from dalle_2.pipelines.manifest import sha256

PIPELINES = ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline")
NEEDED = ("prior", "scheduler", "text_encoder")
KNOWN = {name: CLASSES[name] for name in ("prior", "text_encoder", "image_encoder")} | {"scheduler": "UnCLIPScheduler"}


def load_kandinsky(folder: Path, placement: Placement | None = None) -> DALLe2:
    """A pipeline of the prior and its CLIP, whose `embed` draws image embeddings and whose decoder is yours to set.

    2.1 reads OpenAI's ViT-L/14, as Karlo does, so that Karlo's decoder fits it; 2.2 reads OpenCLIP's ViT-bigG/14.
    Raises CheckpointError as `load_karlo` does.
    """
    parts = KandinskyParts(folder, placement)
    parts.check()
    return pipeline_of(parts, fingerprint=sha256(folder / INDEX))


class KandinskyParts(KarloParts):
    """The same parts, two of them under other names."""

    pictures = "image_processor"

    def check(self) -> None:
        """Raises CheckpointError for what `load_kandinsky` refuses."""
        self.check_parts(NEEDED, KNOWN)

    def config(self, part: str) -> dict[str, Any]:
        """A part's settings."""
        return super().config("scheduler" if part == "prior_scheduler" else part)
