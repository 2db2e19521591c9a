"""`dalle2 evaluate`: exact match of a pipeline on fixed scenes, or what CLIP says of it on somebody's pictures."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_2.cli import options
from dalle_2.cli.counting import progress
from dalle_2.cli.evaluate_data import check_draws_shapes, evaluate_data
from dalle_2.errors import UsageError
from dalle_2.pipelines.find import DEFAULT
from dalle_2.sampling.sampler_names import NAMES, sampler_name

SPLITS = {"a": "new scenes of seen pairs", "b": "pairings never seen together", "c": "colour-shape pairs never seen"}


def evaluate(
    pipeline: options.Pipeline = DEFAULT,
    data: Annotated[
        str | None, typer.Option(help="Measure on this folder of captioned pictures, or s3://..., in place of Shapes.")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Of --data, the share that training kept out; by default what it never saw of all."),
    ] = None,
    n: Annotated[
        int, typer.Option(help="Scenes a split, or at most so many pictures; the published figures use 500.")
    ] = 500,
    splits: Annotated[str, typer.Option(help="Which of a, b, c and 'one object', with commas; by default all.")] = "",
    embeddings: Annotated[
        str, typer.Option(help="prior; text: without a prior; image: CLIP's embedding of a true picture (upper bound).")
    ] = "prior",
    prior: Annotated[str | None, typer.Option(help="diffusion or ar, in a pipeline that has both.")] = None,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, max=options.MOST, help="Embeddings that the prior draws for a picture; the best is kept."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another set of scenes and noises, for tuning.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of every stage; by default the pipeline's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Of the decoder; by default the pipeline's.")] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Of the decoder, by default ddim: {', '.join(NAMES)}.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where report.json, report.md and the sheets go.")] = Path("evaluation"),
    card: Annotated[bool, typer.Option("--card", help="Write the figures into the pipeline's README.md.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Only the part at work is in memory.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure how well a pipeline follows its prompts.

    Draws one picture for each fixed scene of Shapes, reads it back without any learning, and counts it as exact
    where the number of objects and everything the caption states is right. Splits: a, new scenes of seen pairs;
    b, pairings of objects never seen together; c, colour-shape pairs never seen.

    With --data it draws one picture for each caption of a folder, and says how close CLIP finds them to their captions,
    to those of others, and the true pictures to theirs; and how well the prior's embeddings find the true pictures.
    """
    if embeddings not in ("prior", "text", "image"):
        raise UsageError(f"embeddings must be prior, text or image, got {embeddings!r}")
    if prior not in (None, "diffusion", "ar"):
        raise UsageError(f"prior must be diffusion or ar, got {prior!r}")
    if n < 1:
        raise UsageError(f"n must be at least 1 scene, got {n}")
    if n > options.IN_ALL:
        raise UsageError(f"n must be at most {options.IN_ALL:,}, got {n}")
    if sampler is not None:
        sampler_name(sampler)
    if data is not None and splits:
        raise UsageError(
            f"--splits {splits} is of Shapes, and --data measures on other pictures: leave one of them out"
        )
    if data is None and held_out is not None:
        raise UsageError(f"--held-out {held_out} is a share of a folder's pictures: name the folder with --data")
    from dalle_2.data.shapes import EVALUATION_SEED
    from dalle_2.evaluation.evaluate import QUESTIONS, Settings, sheet, table
    from dalle_2.evaluation.evaluate import evaluate as run
    from dalle_2.metadata import png
    from dalle_2.paths import atomic_write_bytes, atomic_write_text
    from dalle_2.pipelines.folder import load
    from dalle_2.place import require_place

    settings = Settings(
        n=n, seed=EVALUATION_SEED if seed is None else seed, embeddings=embeddings,  # type: ignore[arg-type]
        steps=steps, guidance=guidance, sampler=sampler, prior=prior, candidates=candidates,  # type: ignore[arg-type]
    )  # fmt: skip
    require_place(out)
    questions, readme = chosen(splits, QUESTIONS), card_of(pipeline) if card else None
    if data is not None:
        evaluate_data(
            pipeline, data, held_out, settings, out, readme, device=device, dtype=dtype, low_memory=low_memory,
            quiet=quiet,
        )  # fmt: skip
        return
    check_draws_shapes(pipeline)
    whole = load(pipeline, device=device, dtype=dtype, low_memory=low_memory)
    results = []
    for question in questions:
        with progress(f"{question.name}: {SPLITS.get(question.name, 'new scenes')}", n, quiet) as advance:
            results.append(run(whole, question, settings, on_pictures=advance))
        atomic_write_bytes(out / f"{question.name.replace(' ', '-')}.png", png(sheet(results[-1])))
    report = {
        "pipeline": pipeline, "fingerprint": whole.fingerprint, "settings": vars(settings),
        "results": [result.as_json() for result in results],
    }  # fmt: skip
    atomic_write_text(out / "report.json", json.dumps(report, indent=1))
    atomic_write_text(out / "report.md", table(results) + "\n")
    typer.echo(table(results))
    typer.echo(f"report.json, report.md and the sheets (failures framed in red) are in {out}", err=True)
    if readme:
        write_card(readme, results, settings)
        typer.echo(f"the figures are in {readme}", err=True)


def chosen(splits: str, questions: Any) -> list[Any]:
    """The questions named in "a,b", or all. Raises UsageError for a name that doesn't exist."""
    names = [name.strip() for name in splits.split(",") if name.strip()]
    known = {question.name: question for question in questions}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no split {unknown[0]!r}: there are {', '.join(known)}")
    return [known[name] for name in names] or list(questions)


def card_of(pipeline: str) -> Path:
    """The README.md of a pipeline in a folder. Raises UsageError for a hub id, of which only a cached copy is here."""
    from dalle_2.pipelines.find import locate
    from dalle_2.pipelines.manifest import CARD

    folder = locate(pipeline)
    if isinstance(folder, str):
        raise UsageError(f"--card writes into a pipeline's folder, and {pipeline!r} is none here: give a local folder")
    return folder / CARD


def write_card(path: Path, results: Any, settings: Any) -> None:
    """Puts the figures, what they were measured with and what failed most into a model card."""
    from dalle_2.evaluation.evaluate import table
    from dalle_2.evaluation.failures import failures
    from dalle_2.paths import atomic_write_text
    from dalle_2.pipelines.card import card_text, with_figures

    figures = f"`dalle2 evaluate`, per cent: {settings.described}.\n\n{table(results)}"
    verdicts = [verdict for result in results for verdict in result.verdicts]
    atomic_write_text(path, with_figures(card_text(path), figures, failures(verdicts)))
