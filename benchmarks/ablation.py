"""What the prior is for (DALL·E 2 paper, section 5.1): with it, without it, and a decoder trained to do without.

    python benchmarks/ablation.py [--pipeline shapes-tiny] [--images 250000] [--n 200] [--out FOLDER]

On the CLIP of a pipeline of Shapes two decoders are trained with the settings of `shapes-tiny` and equal budgets, each
on a draft of its own: on the embeddings of pictures and on those of captions. Prior and upsampler are the pipeline's.
Called again with the same folder it goes on where it stopped.
"""

import argparse
from pathlib import Path
from typing import Any, get_args

import torch
from report import say, show

from dalle_2.data.dataset import load_dataset
from dalle_2.evaluation.evaluate import QUESTIONS, Embeddings, Settings, evaluate
from dalle_2.models.dalle2 import DALLe2
from dalle_2.pipelines.folder import load
from dalle_2.presets import preset
from dalle_2.training.embed import embed
from dalle_2.training.ground import Ground
from dalle_2.training.progress import Silent
from dalle_2.training.recipe import Sight
from dalle_2.training.train_decoder import train_decoder
from dalle_2.training.train_draft import train_draft

SPLITS = ("a", "one object")
ROWS: tuple[tuple[str, Sight, Embeddings], ...] = (
    ("full stack", "image", "prior"),
    ("no prior", "image", "text"),
    ("decoder trained on text embeddings", "text", "text"),
)


def main() -> None:
    """Trains what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--pipeline", default="shapes-tiny")
    parser.add_argument("--images", type=int, default=250_000, help="pictures that each draft sees")
    parser.add_argument("--embeddings", type=int, default=400_000)
    parser.add_argument("--n", type=int, default=200, help="scenes a split")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("ablation"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = load(options.pipeline, device="cpu")
    ground = ground_of(pipeline, options)
    decoders = {sight: trained(ground, sight, options) for sight in get_args(Sight)}
    rows = [row(pipeline, decoders[sight], name, given, options.n) for name, sight, given in ROWS]
    about = {"pipeline": options.pipeline, "fingerprint": pipeline.fingerprint, "images": options.images}
    show(rows, {**about, "rows": rows})


def ground_of(pipeline: DALLe2, options: argparse.Namespace) -> Ground:
    """The embeddings of the pipeline's CLIP, computed once."""
    encoder, recipe = pipeline.clip_encoder, preset("shapes-tiny")
    dataset = load_dataset("shapes", recipe.draft.config.image_size, options={"length": options.embeddings})
    store = embed(
        encoder, dataset, options.out, count=options.embeddings, encoder_id=pipeline.fingerprint,
        on_progress=lambda done, count: done % 25_600 or say(f"embedded {done} of {count}"),
    )  # fmt: skip
    return Ground(encoder, dataset, store, recipe.directions, recipe.seed, Silent())


def trained(ground: Ground, sight: Sight, options: argparse.Namespace) -> Path:
    """The weight file of a decoder on a draft, both trained on the embeddings of pictures or of captions."""
    recipe, folder = preset("shapes-tiny"), options.out / sight
    run = recipe.draft.run.model_copy(update={"images": options.images})
    say(f"the draft and the decoder of {sight} embeddings")
    draft = recipe.draft.model_copy(update={"of": sight, "run": run})
    drafted = train_draft(draft, ground, ground.captioned, folder / "draft")
    decoder = recipe.decoder.model_copy(update={"of": sight})
    return train_decoder(decoder, ground, ground.captioned, folder / "decoder", draft=drafted)


def row(pipeline: DALLe2, decoder: Path, name: str, given: Embeddings, count: int) -> dict[str, Any]:
    """A line of the table."""
    whole = DALLe2(pipeline.prior, decoder, pipeline.clip_encoder, upsampler_paths=pipeline.upsamplers, device="cpu")
    line: dict[str, Any] = {"what": name}
    for question in (one for one in QUESTIONS if one.name in SPLITS):
        say(f"{name}: {question.name}")
        found = evaluate(whole, question, Settings(n=count, embeddings=given))
        exact = found.rates["exact"]
        share, low, high = (100 * (value or 0.0) for value in (exact.value, exact.low, exact.high))
        line[f"exact match, {question.name}, %"] = f"{share:.1f} ({low:.1f} to {high:.1f})"
        line[f"CLIP similarity, {question.name}"] = found.clip_similarity
    return line


if __name__ == "__main__":
    main()
