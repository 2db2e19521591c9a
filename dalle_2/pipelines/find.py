"""Where a pipeline lies: a shipped name, a folder, or an id on the hub."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from dalle_2 import hub
from dalle_2.cached import HUB_ID, INDEX, cached
from dalle_2.errors import CheckpointError, HubError, UsageError
from dalle_2.json_file import read_object
from dalle_2.paths import TRAINED_MODELS, at_home, shipped_pipelines
from dalle_2.pipelines.manifest import MANIFEST
from dalle_2.pipelines.moving import finish_move
from dalle_2.published import PUBLISHED, Published, published_as

DEFAULT = "shapes-tiny"
FOREIGN = INDEX  # what a folder in the layout of diffusers has in place of our manifest
ORIGINAL = "decoder-ckpt*.ckpt"  # and one of Karlo's own files
ON_THE_HUB = {row.name: row.repo for row in PUBLISHED if row.pipeline and row.repo}
GLIDE = {  # the files of OpenAI's GLIDE, by role
    "decoder": "base.pt", "upsampler": "upsample.pt",
    "decoder-inpaint": "base_inpaint.pt", "upsampler-inpaint": "upsample_inpaint.pt",
}  # fmt: skip
GLIDE_DRAWS = [GLIDE["decoder"], GLIDE["decoder-inpaint"]]  # of which one must be there
PLAN = "stages.json"  # in the folder `run` of a training: the stages that its recipe trains
STAGE = re.compile(r"[\w-]{1,60}")


def find_pipeline(source: str | os.PathLike[str]) -> Path:
    """The folder of a pipeline: a shipped name, else ./trained_models/NAME, a published name, a folder or a hub id.

    A folder in the current directory that bears a known name is meant by "./NAME"; "FOLDER/NAME" in a folder that is
    here is never a hub id. Raises UsageError for a name that is none of these, CheckpointError for a folder without a
    pipeline, HubError for a hub id that is neither cached nor can be fetched.
    """
    place = locate(source)
    return _whole(place) if isinstance(place, Path) else _from_hub(place)


def check_draws(source: str | os.PathLike[str]) -> None:
    """Raises UsageError for published weights that make no pictures by themselves, before they are fetched for it."""
    place = locate(source)
    row = published_as(place) if isinstance(place, str) else None
    if row is not None and not row.draws:
        raise UsageError(_no_pictures(row))


def locate(source: str | os.PathLike[str]) -> Path | str:
    """A pipeline's folder, or its hub id, of which nobody knows yet whether it is cached. Raises as `find_pipeline`."""
    if (shipped := known_pipelines().get(str(source))) is not None:
        return shipped
    if isinstance(source, str) and source in ON_THE_HUB:
        return ON_THE_HUB[source]
    folder = at_home(source)
    if folder.is_file() and folder.name == MANIFEST:
        return folder.parent
    if folder.is_dir():
        if not holds_pipeline(_whole(folder)):
            _check_finished(folder)
            raise CheckpointError(f"{folder} is no pipeline folder: it has no {MANIFEST} and no {FOREIGN}")
        return folder
    if folder == Path(folder.name):
        _check_finished(TRAINED_MODELS / folder)
    _check_place(folder)
    if (row := published_as(str(source))) is not None and not row.pipeline:
        raise UsageError(_on_no_hub(row) if row.draws else _no_pictures(row))
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        return source
    raise UsageError(f"there is no pipeline {str(source)!r}: {_hint(str(source))}, or give a folder or a hub id")


def _whole(folder: Path) -> Path:
    """The folder, once a pipeline is in it whose move there was cut off."""
    with suppress(OSError):  # somebody else's, who may finish it
        finish_move(folder)
    return folder


def _check_finished(folder: Path) -> None:
    """Raises CheckpointError for the folder of a training that has not come to its end."""
    try:
        stages = read_object(folder / "run" / PLAN, "").get("stages")
    except CheckpointError:
        return
    if not isinstance(stages, list) or not all(isinstance(stage, str) and STAGE.fullmatch(stage) for stage in stages):
        return
    missing = [stage for stage in stages if not (folder / "run" / stage / "done.json").is_file()]
    at = f"stage {stages.index(missing[0]) + 1} of {len(stages)} ({missing[0]})" if missing else "its last step"
    raise CheckpointError(
        f"{folder} is not finished, its training has come to {at}: run the same dalle2 train command to go on"
    )


def _no_pictures(row: Published) -> str:
    return f"{row.name} ({row.does}) makes no pictures by itself: name a pipeline that does, such as karlo"


def _on_no_hub(row: Published) -> str:
    return f"{row.name} lies on no hub: {row.page} tells where its files are; give the folder that you put them in"


def holds_pipeline(folder: Path) -> bool:
    """Whether a folder has the index of a pipeline, of ours or of diffusers', or Karlo's own files or GLIDE's."""
    return _indexed(folder) or any(folder.glob(ORIGINAL)) or holds_glide(folder)


def holds_glide(folder: Path) -> bool:
    """Whether a folder has GLIDE's own files and no index of another pipeline."""
    return not _indexed(folder) and any((folder / name).is_file() for name in GLIDE_DRAWS)


def _indexed(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MANIFEST, FOREIGN))


def known_pipelines() -> Mapping[str, Path]:
    """Pipelines that a bare name stands for: those in ./trained_models, and the shipped ones, which win."""
    homes = (TRAINED_MODELS, shipped_pipelines())
    folders = [path.parent for home in homes for path in sorted(home.glob(f"*/{MANIFEST}"))]
    return {folder.name: folder for folder in folders}


def _check_place(folder: Path) -> None:
    """Raises UsageError for a file, and for a folder that isn't there where the one around it is."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file: give the folder of a pipeline")
    home = folder.parent
    if home != Path() and home.is_dir():  # else a slip in a path would be looked up on the hub
        raise UsageError(f"there is no folder {folder}: {_hint_in(home, folder.name)}")


def _hint_in(home: Path, name: str) -> str:
    close = get_close_matches(name, sorted(path.name for path in home.iterdir() if path.is_dir()), n=1)
    if close:
        return f"did you mean {home / close[0]}?"
    held = ", ".join(sorted(path.parent.name for path in home.glob(f"*/{MANIFEST}")))
    return f"{home} holds {held or 'no pipeline'}"


def _hint(name: str) -> str:
    known = [*known_pipelines(), *ON_THE_HUB]
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(known)}" if known else "none is shipped with this copy of dalle_2"


def _from_hub(name: str) -> Path:
    folder = cached(name) or hub.fetch(name)
    if not holds_pipeline(folder):
        raise HubError(f"{name} on the hub is no pipeline that is known here: it has no {MANIFEST} and no {FOREIGN}")
    return folder
