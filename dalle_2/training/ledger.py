"""What a run folder says of its stages: `begun.json` what each follows from, `done.json` also what its files hold."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dalle_2.config import Settings, parse
from dalle_2.errors import CheckpointError, ConfigError, DataError, UsageError
from dalle_2.json_file import read_object
from dalle_2.paths import atomic_write_text
from dalle_2.pipelines.manifest import sha256
from dalle_2.training.differences import FREE, SHOWN, differing, in_the_recipe, without
from dalle_2.training.placeless import placeless, without_place
from dalle_2.training.recipe import Recipe
from dalle_2.training.stages import BASES, STAGES
from dalle_2.weights.checkpoint import load_checkpoint

FILES = "files"  # the entry of `done.json` that is no part of an identity
BESIDE = {"clip": ("tokenizer.json",)}  # what a stage leaves beside its weights
PICTURES = "data.pictures"  # the dotted name of a folder's fingerprint


class Ledger:
    """The stages of a recipe in the folder `run`.

    pictures: gives the fingerprint of what the recipe's folder holds, None for pictures that are drawn here.
    """

    def __init__(self, recipe: Recipe, run: Path, pictures: Callable[[], str | None]) -> None:
        self.recipe, self.run, self._pictures = recipe, run, pictures
        self._known: dict[Path, tuple[tuple[int, int], str]] = {}

    def file(self, stage: str) -> Path:
        """Its weights."""
        return self.run / stage / f"{stage}.safetensors"

    def clip_is_there(self) -> bool:
        """Whether the other stages have a CLIP to stand on."""
        return bool(self.recipe.clip.encoder) or self.file("clip").exists()

    def encoder_id(self) -> str:
        """What the CLIP is known by."""
        if self.recipe.clip.encoder:
            return self.recipe.clip.encoder
        if self.says_done("clip"):
            self.check_sound("clip")
        return self._digest(self.file("clip"))

    def base(self, stage: str) -> str | None:
        """The stage that one goes on from, if the recipe has it."""
        base = BASES.get(stage)
        return base if base in self.recipe.stages else None

    def identity(self, stage: str) -> dict[str, Any]:
        """Everything a stage's result follows from; of a folder also what lies in it."""
        settings: Settings = getattr(self.recipe, stage)
        data: dict[str, Any] = self.recipe.data.model_dump(mode="json")
        if (pictures := self._pictures()) is not None:
            data["pictures"] = pictures
        later = stage != "clip"
        identity = {
            "settings": settings.model_dump(mode="json"), "data": without_place(data),
            "seed": self.recipe.seed, "embeddings": self.recipe.embeddings if later else None,
            "clip": self.encoder_id() if later else None, "directions": self.recipe.directions if later else None,
        }  # fmt: skip
        if (base := self.base(stage)) is not None:
            identity[base] = self._digest(self.file(base)) if self.file(base).exists() else None
            identity[f"{base}_begun"] = self._base_begun(base)
        return identity

    def begin(self, stage: str) -> None:
        """Notes what a stage follows from, at its first start."""
        if not self._begun(stage).exists():
            atomic_write_text(self._begun(stage), json.dumps(self.identity(stage), indent=2))

    def end(self, stage: str, identity: dict[str, Any]) -> None:
        """Notes that a stage with that identity is done, and what its files hold."""
        files = {name: self._digest(self.run / stage / name) for name in self._files(stage)}
        atomic_write_text(self._done(stage), json.dumps({**identity, FILES: files}, indent=2))

    def is_done(self, stage: str) -> bool:
        """Whether the stage has run to its end, with these settings and on this CLIP.

        Raises CheckpointError where its files are not what it left.
        """
        if stage == "clip" and self.recipe.clip.encoder:
            return True
        if not (self.file(stage).exists() and self.clip_is_there()) or not self.says_done(stage):
            return False
        if not all(path.exists() for path in self._noted_files(stage)):
            return False
        self.check_sound(stage)
        return True

    def says_done(self, stage: str) -> bool:
        """Whether a stage with these settings is noted as done, whatever became of its files."""
        if not self._done(stage).exists():
            return False
        done = self._written(self._done(stage), stage)
        return without(done, SHOWN) == without(self.identity(stage), SHOWN)

    def check_sound(self, stage: str, *, anew: bool = False) -> None:
        """Raises CheckpointError for a file of a finished stage that isn't what the stage left. anew: reads it again.

        Earlier releases didn't note what it held.
        """
        for path, digest in self._noted_files(stage).items():
            if path.exists() and self._digest(path, anew=anew) != digest:
                raise CheckpointError(
                    f"{path} is not what its training left there, and may have been damaged on the disk: delete it, "
                    "and the same command writes it anew from the stage's state"
                )

    def check_begun(self, stage: str) -> None:
        """A run that has begun goes on with the settings it began with; only its length may grow, and how the model is
        sampled may change. Raises UsageError naming what changed, DataError where only the pictures did."""
        path = self._begun(stage)
        if not path.exists():
            return
        # A decoder's draft is frozen beside it and may have grown; an inpainting decoder would stay the old one's.
        digest = {"draft": None} if self.base(stage) == "draft" else {}
        before, now = ({**without(one, FREE), **digest} for one in (self._written(path, stage), self.identity(stage)))
        changed = dict.fromkeys(in_the_recipe(name, stage) for name in differing(before, now))
        if [*changed] == [PICTURES]:
            place = self.recipe.data.source.removeprefix("folder:")
            raise DataError(
                f"the pictures in {place} have changed since {self.run} was begun: put them back as they were to go "
                "on, delete that folder to train anew on what is there now, or choose another --out"
            )
        if changed:
            raise UsageError(
                f"{path.parent} was begun with another {', '.join(changed)}: "
                "delete that folder to start the stage anew, or choose another --out"
            )

    def check_nothing_stands_on_clip(self) -> None:
        """A CLIP that is trained on would pull the ground from under the stages that were trained with it.

        One that is only written anew from its state would not.
        """
        later = [stage for stage in STAGES[1:] if (self.run / stage).exists()]
        if later and not self._stays("clip"):
            raise UsageError(
                f"{self.run} holds stages that were trained with the CLIP you are about to change "
                f"({', '.join(later)}): choose another --out, or delete those folders to train them anew"
            )

    def _stays(self, stage: str) -> bool:
        """Whether going through a stage again would end with what it left: it was done, or its weights say so."""
        if self.says_done(stage):
            return True
        settings = getattr(self.recipe, stage).run.model_dump(mode="json")
        with suppress(CheckpointError):
            return bool(load_checkpoint(self.file(stage)).provenance.get("run") == settings)
        return False

    def _base_begun(self, base: str) -> dict[str, Any] | None:
        """What every length of a run shares: a stage may go on from one that was trained longer."""
        path = self._begun(base)
        return without(placeless(_noted(path, _ANEW)), FREE) if path.exists() else None

    def _written(self, path: Path, stage: str) -> dict[str, Any]:
        """A stage's identity as it was written; settings that are newer than it have their defaults."""
        noted = _noted(path, _ANEW if path == self._begun(stage) else _AGAIN)
        identity: dict[str, Any] = placeless({name: value for name, value in noted.items() if name != FILES})
        with suppress(ConfigError):  # one that is gone shows as a difference
            settings = parse(type(getattr(self.recipe, stage)), identity["settings"])
            identity["settings"] = settings.model_dump(mode="json")
        known = self.recipe.directions if stage != "clip" else None
        return {"directions": known, **identity}  # which earlier releases didn't write

    def _noted_files(self, stage: str) -> dict[Path, str]:
        """The digests of what a stage left when it was done."""
        if not self._done(stage).exists():
            return {}
        noted = _noted(self._done(stage), _AGAIN).get(FILES)
        files = noted.items() if isinstance(noted, dict) else ()
        return {self.run / stage / Path(name).name: str(digest) for name, digest in files}

    def _files(self, stage: str) -> list[str]:
        names = [self.file(stage).name, *BESIDE.get(stage, ())]
        return [name for name in names if (self.run / stage / name).exists()]

    def _digest(self, path: Path, *, anew: bool = False) -> str:
        """Of a file that is read once, unless it changes."""
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if anew or self._known.get(path, (None, ""))[0] != stamp:
            self._known[path] = (stamp, sha256(path))
        return self._known[path][1]

    def _begun(self, stage: str) -> Path:
        return self.run / stage / "begun.json"

    def _done(self, stage: str) -> Path:
        return self.run / stage / "done.json"


_AGAIN = "delete it, and the same command notes it anew"
_ANEW = "delete it if the settings are those the stage was begun with, or its whole folder to begin the stage anew"


def _noted(path: Path, cure: str) -> dict[str, Any]:
    """What a stage's note says. Raises CheckpointError, with what to do, for one that is damaged."""
    try:
        noted = read_object(path, f"there is no {path}")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {cure}") from None
    if not _is_identity(noted):
        raise CheckpointError(f"{path} is damaged, it doesn't say what its stage follows from: {cure}")
    return noted


def _is_identity(noted: dict[str, Any]) -> bool:
    """Whether an identity has the form of one, and those of the stages in it."""
    tables = ("settings", "data")
    if not all(isinstance(noted.get(name), dict) for name in tables):
        return False
    parts = [noted["settings"].get(name, {}) for name in ("run", "config")]
    options = noted["data"].get("options")
    begun = [value for name, value in noted.items() if name.endswith("_begun") and value is not None]
    return all(isinstance(part, dict) for part in (*parts, options, *begun)) and all(map(_is_identity, begun))
