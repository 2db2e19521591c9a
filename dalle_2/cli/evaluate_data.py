"""`dalle2 evaluate --data FOLDER`: a pipeline measured on captioned pictures, and whether Shapes measures it at all."""

import json
from pathlib import Path
from typing import Any

import typer

from dalle_2.cli.counting import progress
from dalle_2.errors import UsageError
from dalle_2.json_file import read_object
from dalle_2.paths import quoted
from dalle_2.pipelines.find import find_pipeline, holds_glide, locate
from dalle_2.pipelines.manifest import MANIFEST, Manifest, read_manifest
from dalle_2.pipelines.seen import read_seen
from dalle_2.published import published_as

SHAPES, FOLDER = "shapes", "folder:"
JUDGE = (
    "Similarities and ranks are cosines by the pipeline's own CLIP, which may itself have been trained on such pictures"
)


def check_draws_shapes(pipeline: str) -> None:
    """Raises UsageError for a pipeline that was trained on other pictures, of which Shapes measures nothing."""
    place = locate(pipeline)
    if isinstance(place, str) and published_as(place) is None:
        place = find_pipeline(place)
    if isinstance(place, Path) and (holds_glide(place) or _may_draw_shapes(place)):
        return  # of GLIDE, which is no pipeline, loading says so
    source = _source(_manifest(place)) if isinstance(place, Path) else None
    what = "your captioned pictures" if source is None else _named(source)
    folder = "FOLDER" if source is None else quoted(_named(source))
    raise UsageError(
        f"{pipeline} does not draw Shapes, whose scenes are all that is measured without --data: "
        f"say --data {folder} to measure it on {what}"
    )


def _may_draw_shapes(folder: Path) -> bool:
    """Whether a folder's pipeline was trained on Shapes or, if nothing says on what, whether it knows such words."""
    from dalle_2.data.scenes import SHAPES as WORDS

    manifest = _manifest(folder)
    if manifest is None or "converted_from" in manifest.training or _source(manifest) not in (None, SHAPES):
        return False
    known = _known_words(folder, manifest)
    return _source(manifest) == SHAPES or not known or not {*WORDS}.isdisjoint(known)


def _known_words(folder: Path, manifest: Manifest) -> list[str]:
    """The words of the training's captions; none for a vocabulary that was not learnt from captions."""
    part = manifest.parts.get("tokenizer")
    own = read_object(folder / part.file, f"there is no {part.file}").get("dalle_2", {}) if part and part.file else {}
    return own.get("known_words") or []


def evaluate_data(
    pipeline: str, data: str, held_out: float | None, settings: Any, out: Path, card: Path | None, *,
    device: str, dtype: str, low_memory: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measures, and leaves report.json, report.md and a sheet in `out`."""
    from dalle_2.data.image_folder import ImageFolder
    from dalle_2.evaluation.captioned import measure, sheet, table
    from dalle_2.evaluation.unseen import choose
    from dalle_2.metadata import png
    from dalle_2.paths import atomic_write_bytes, atomic_write_text
    from dalle_2.pipelines.folder import load

    whole, place = load(pipeline, device=device, dtype=dtype, low_memory=low_memory), find_pipeline(pipeline)
    folder = ImageFolder(data, whole.size, **_options(_manifest(place)))
    chosen = choose(folder, settings.n, held_out, _seen(place))
    with progress(f"{folder.name}: captions", len(chosen.rows), quiet) as advance:
        measured = measure(whole, folder, chosen.rows, settings, on_pictures=advance)
    atomic_write_bytes(out / "pictures.png", png(sheet(measured)))
    shown = data.encode("utf-8", "backslashreplace").decode()  # a name may be no text
    drawn = f"{len(measured.rows)} pictures of {shown}, {settings.ways}"
    said = f"{table(measured)}\n\n{drawn}; {chosen.verdict}. {JUDGE}.\n"
    report = {
        "pipeline": pipeline, "fingerprint": whole.fingerprint, "settings": vars(settings),
        "data": {"folder": data, "held_out": held_out, "pictures": len(folder), "seen": chosen.seen},
        "results": [measured.as_json()],
    }  # fmt: skip
    atomic_write_text(out / "report.json", json.dumps(report, indent=1))
    atomic_write_text(out / "report.md", said)
    typer.echo(said, nl=False)
    if folder.report().skipped:
        typer.echo(f"dalle2: warning: {folder.report()}", err=True)
    typer.echo(f"report.json, report.md and pictures.png (true beside drawn) are in {out}", err=True)
    if card:
        _write_card(card, said)


def _write_card(path: Path, said: str) -> None:
    from dalle_2.paths import atomic_write_text
    from dalle_2.pipelines.card import card_text, with_figures

    atomic_write_text(path, with_figures(card_text(path), f"`dalle2 evaluate --data`:\n\n{said.rstrip()}", ""))
    typer.echo(f"the figures are in {path}", err=True)


def _manifest(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / MANIFEST).is_file() else None


def _data(manifest: Manifest | None) -> dict[str, Any]:
    """What the recipe in a manifest says of the data; nothing where there is none."""
    recipe = manifest.training.get("recipe") if manifest else None
    data = recipe.get("data") if isinstance(recipe, dict) else None
    return data if isinstance(data, dict) else {}


def _source(manifest: Manifest | None) -> str | None:
    source = _data(manifest).get("source")
    return source if isinstance(source, str) else None


def _named(source: str) -> str:
    return source.removeprefix(FOLDER)


def _options(manifest: Manifest | None) -> dict[str, Any]:
    """How training read its pictures, all of which are wanted now."""
    if _source(manifest) in (None, SHAPES):
        return {}
    return {name: value for name, value in _data(manifest).get("options", {}).items() if name != "held_out"}


def _seen(folder: Path) -> frozenset[str] | None:
    """What training saw: nothing of anybody's where it saw Shapes."""
    noted = read_seen(folder)
    return frozenset() if noted is None and _source(_manifest(folder)) == SHAPES else noted
