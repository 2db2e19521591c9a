"""pipeline.json: what a pipeline folder holds. Needs no torch, so that folders can be listed quickly."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from dalle_2 import bounds, cached
from dalle_2.config import Settings, parse
from dalle_2.errors import CheckpointError, ConfigError
from dalle_2.json_file import read_object
from dalle_2.paths import atomic_write_text
from dalle_2.sampling.sampler_names import SamplerName

MANIFEST, CARD = cached.MANIFEST, "README.md"
FORMAT_VERSION = 1

PLAIN_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$"  # no way out of the folder
OPENCLIP = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*/[A-Za-z0-9][A-Za-z0-9_.+-]*$"  # no path to a file
UPSAMPLER = re.compile(r"upsampler-([0-9]{1,6})")
MOST_PARTS = 64


class Part(Settings):
    """One role's part: a file of the folder, or, for a CLIP, where else it is found.

    kind: what the file holds. sha256: of the file. config: the model's settings, a copy for readers; loading takes
    those in the file. hub: a hub id. openclip: "model/tag".
    """

    file: str | None = Field(None, pattern=PLAIN_NAME)
    kind: str = ""
    sha256: str = ""
    config: dict[str, Any] | None = None
    hub: str | None = Field(None, pattern=f"^{cached.HUB_ID.pattern}$")
    openclip: str | None = Field(None, pattern=OPENCLIP)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.file, self.hub, self.openclip)) != 1:
            raise ValueError("a part is in one place: give file, or hub, or openclip")
        return self


class Manifest(Settings):
    """What pipeline.json says. Roles are "clip", "tokenizer", "prior", "decoder", "upsampler-256", ...

    A role that this release doesn't know is kept and not loaded. steps, guidance, sampler: a stage's defaults where
    they differ from its part's own. training: plain values, such as the recipe, minutes and figures.
    """

    format_version: int = Field(FORMAT_VERSION, ge=1, strict=True)
    name: str = Field(max_length=1000)
    parts: dict[str, Part] = Field(max_length=MOST_PARTS)
    steps: dict[str, Annotated[int, Field(ge=1, le=bounds.TIMESTEPS)]] = Field(default_factory=dict)
    guidance: dict[str, Annotated[float, Field(ge=0, le=bounds.FACTOR)]] = Field(default_factory=dict)
    sampler: dict[str, SamplerName] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def upsamplers(self) -> list[str]:
        """The roles of the upsamplers, small pictures first."""
        return sorted(filter(UPSAMPLER.fullmatch, self.parts), key=lambda role: int(role.partition("-")[2]))


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError if pipeline.json is missing, damaged, or of a newer format."""
    path = folder / MANIFEST
    values = read_object(path, f"{folder} is no pipeline folder: it has no {MANIFEST}")
    version = values.get("format_version", FORMAT_VERSION)
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} is damaged: its format_version is {version!r}, expected a number from 1 on")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, and this release reads up to {FORMAT_VERSION}: upgrade dalle_2"
        )
    try:
        return parse(Manifest, values)
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Writes without what is left at its default."""
    values = {"format_version": manifest.format_version, **manifest.model_dump(mode="json", exclude_defaults=True)}
    atomic_write_text(path, json.dumps(values, ensure_ascii=False, indent=1) + "\n")


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
