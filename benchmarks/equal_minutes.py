"""Both sides' decoder and prior after equal minutes of training on the same embeddings of Shapes.

    .venv-peers/bin/python benchmarks/equal_minutes.py --minutes 30 --out equal-minutes

The networks are those of compare_training.py, at 64 px; both sides go through the training step of
benchmarks/training_step.py with the same batch, rate and number of sampling steps, one after the other. Pictures
and embeddings lie in memory before the clock starts. Then both draw the same fixed scenes: from the captions, by way
of each side's own prior, and from the embeddings of the true pictures, which tells what the decoder alone can do.
Pictures are enlarged to 256 px (bicubic) and read by the scene parser; "truth" is the same reading of the true ones.
Priors are also compared through the trained decoder and upsampler of `--pipeline`, which show what each embedding says
where minutes are too few for a decoder: those are the rows "by the pipeline".
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import say, show
from sides import Batch, Side, our_decoder, our_prior, their_decoder, their_prior
from torch import Tensor
from training_step import TrainingStep

import dalle_2
from dalle_2.data.captions import Statement
from dalle_2.data.render import render
from dalle_2.data.shapes import Shapes, fixed_scenes
from dalle_2.evaluation.exact_match import Verdict, aggregate, judge
from dalle_2.evaluation.scene_parser import parse
from dalle_2.images import grid, to_pils
from dalle_2.paths import atomic_path
from dalle_2.training.embed import embed, measured_space

SIZE, READ_AT = 64, 256
RATES = {"decoder": 3e-4, "prior": 3e-4}


@dataclass(frozen=True, eq=False)
class Data:
    """What both sides train on, in memory: uint8 pictures and their embeddings."""

    image: Tensor
    z_img: Tensor
    z_txt: Tensor

    def batches(self, size: int, device: torch.device) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        while True:
            rows = torch.randint(len(self.image), (size,), generator=generator)
            image = self.image[rows].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield Batch(self.z_txt[rows].to(device), self.z_img[rows].to(device), image)


@dataclass(frozen=True, eq=False)
class Test:
    """The scenes that are asked for."""

    statements: list[Statement]
    pictures: list[Image.Image]
    z_img: Tensor
    z_txt: Tensor


@dataclass(frozen=True, eq=False)
class Trained:
    """One side after its minutes: averaged weights, and what it got through."""

    prior: torch.nn.Module
    decoder: torch.nn.Module
    seen: dict[str, int]


def load_data(pipeline: Any, pictures: int, folder: Path) -> Data:
    """The store is built once and read back by a later run."""
    dataset = Shapes(size=SIZE, length=pictures, seed=11)
    store = embed(
        pipeline.clip_encoder,
        dataset,
        folder,
        count=pictures,
        encoder_id=pipeline.fingerprint or pipeline.name,
        on_progress=lambda done, count: say(f"embedded {done} of {count}"),
    )
    z_img, z_txt = store.batch(slice(None))
    return Data(torch.from_numpy(np.stack([dataset[i].image for i in range(pictures)])), z_img, z_txt)


def load_test(pipeline: Any, scenes: int) -> Test:
    fixed = fixed_scenes("seen", scenes)
    pictures = [Image.fromarray(render(scene, SIZE)) for scene, _ in fixed]
    statements = [statement for _, statement in fixed]
    z_txt = pipeline.clip_encoder.encode_text([statement.text for statement in statements])
    return Test(statements, pictures, pipeline.clip_encoder.encode_images(pictures), z_txt)


def sides(name: str, data: Data, steps: int) -> dict[str, Side]:
    """Both networks of one side for these embeddings."""
    dim = data.z_img.shape[1]
    if name == "theirs":
        return {
            "prior": their_prior(dim, text_tokens=256),
            "decoder": their_decoder(SIZE, dim=dim, sample_steps=steps),
        }
    spaces = {"image": data.z_img, "text": data.z_txt}
    measured = {key: measured_space(rows.numpy(), normalised=True) for key, rows in spaces.items()}
    return {
        "prior": our_prior(dim, space=measured["image"], text_space=measured["text"]),
        "decoder": our_decoder(SIZE, dim=dim, space=measured["image"]),
    }


def train(side: Side, stage: str, data: Data, arguments: argparse.Namespace) -> tuple[torch.nn.Module, int]:
    """The averaged weights after the minutes, and how many pictures they took."""
    device = torch.device(arguments.device)
    side.model.to(device)
    step, seen = TrainingStep(side.model, lr=RATES[stage]), 0
    batches = data.batches(arguments.batch, device)
    start = time.perf_counter()
    while time.perf_counter() - start < 60 * arguments.minutes:
        batch = next(batches)
        value = step(lambda: side.loss(batch))  # noqa: B023
        seen += len(batch)
        if step.steps % 100 == 1:
            say(f"{stage}: {seen} seen, {time.perf_counter() - start:.0f} s, loss {value:.4f}")
    return step.average, seen


def train_side(name: str, data: Data, arguments: argparse.Namespace) -> Trained:
    say(f"{name}: {arguments.minutes:g} minutes for the prior, as many for the decoder")
    done = {stage: train(side, stage, data, arguments) for stage, side in sides(name, data, arguments.steps).items()}
    return Trained(done["prior"][0], done["decoder"][0], {stage: seen for stage, (_, seen) in done.items()})


# Sampling


@torch.no_grad()
def embeddings(name: str, prior: torch.nn.Module, z_txt: Tensor, steps: int) -> Tensor:
    """Image embeddings of unit length for captions."""
    if name == "ours":
        z_img = prior.sample(z_txt, steps)  # type: ignore[operator]
    else:
        z_img = prior.p_sample_loop(tuple(z_txt.shape), text_cond={"text_embed": z_txt}, timesteps=steps)  # type: ignore[operator]
    return torch.nn.functional.normalize(z_img, dim=-1)


@torch.no_grad()
def draw(name: str, decoder: torch.nn.Module, z_img: Tensor, arguments: argparse.Namespace) -> list[Image.Image]:
    """A picture for each embedding."""
    pictures: list[Image.Image] = []
    for part in z_img.split(25):
        if name == "ours":
            x = decoder.sample(part, arguments.steps, 0.0, guidance=arguments.guidance)  # type: ignore[operator]
        else:
            x = decoder.sample(image_embed=part, cond_scale=arguments.guidance) * 2 - 1  # type: ignore[operator]
        pictures += to_pils(x.float().cpu().clamp(-1, 1))
    return pictures


# Reading


def read(pictures: list[Image.Image], statements: list[Statement]) -> list[Verdict]:
    """Every side's pictures pass through the same enlargement and the same parser."""
    enlarged = [picture.resize((READ_AT, READ_AT), Image.Resampling.BICUBIC) for picture in pictures]
    return [judge(parse(np.asarray(p)), s) for p, s in zip(enlarged, statements, strict=False)]


def evaluate(
    name: str, trained: Trained, test: Test, pipeline: Any, arguments: argparse.Namespace
) -> dict[str, list[Image.Image]]:
    """The decoders, which are slow, draw the first `--drawn` scenes only."""
    device, drawn = torch.device(arguments.device), arguments.drawn
    torch.manual_seed(0)
    z_img = embeddings(name, trained.prior, test.z_txt.to(device), arguments.steps)
    cosine = torch.nn.functional.cosine_similarity(z_img, test.z_img.to(device)).mean()
    say(f"{name}: cosine of the prior's embedding to the true one {cosine:.4f}")
    return {
        f"{name}, the prior's by the pipeline": by_pipeline(pipeline, z_img),
        f"{name}, from captions": draw(name, trained.decoder, z_img[:drawn], arguments),
        f"{name}, from true embeddings": draw(name, trained.decoder, test.z_img[:drawn].to(device), arguments),
    }


def by_pipeline(pipeline: Any, z_img: Tensor) -> list[Image.Image]:
    """A picture for each embedding, by a decoder and an upsampler that neither side trained."""
    pictures: list[Image.Image] = []
    for start in range(0, len(z_img), 20):
        z, seeds = z_img[start : start + 20], list(range(start, min(start + 20, len(z_img))))
        pictures += to_pils(pipeline.upscale(pipeline.decode(z, seeds=seeds), z, seeds=seeds))
    return pictures


def row(what: str, seen: dict[str, int], verdicts: list[Verdict]) -> dict[str, Any]:
    rates = aggregate(verdicts)
    exact = rates["exact"]
    parts = ("count", "colour", "shape", "relation", "background", "unreadable")
    return {
        "what": what,
        "scenes": len(verdicts),
        "prior saw": seen.get("prior", "-"),
        "decoder saw": seen.get("decoder", "-"),
        "exact match (95 %)": f"{100 * exact.value:.1f} % ({100 * exact.low:.1f} to {100 * exact.high:.1f})",  # type: ignore[operator]
        **{part: "-" if rates[part].value is None else f"{100 * rates[part].value:.0f} %" for part in parts},  # type: ignore[operator]
    }


def save_sheet(path: Path, drawn: dict[str, list[Image.Image]], test: Test, columns: int = 8) -> None:
    """The first scenes, a row for the truth and for each way of drawing; a red frame marks what isn't exact."""
    columns = min(columns, len(test.statements))
    images, labels, marks = [], [], []
    for what, pictures in drawn.items():
        verdicts = read(pictures[:columns], test.statements[:columns])
        for picture, statement, verdict in zip(pictures[:columns], test.statements, verdicts, strict=False):
            images.append(picture.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC))
            labels.append(f"{what}: {statement.text}")
            marks.append(not verdict.exact)
    with atomic_path(path) as temporary:
        grid(images, columns, labels, marks).save(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description="Both sides after equal minutes on the same embeddings.")
    parser.add_argument("--pipeline", default="shapes-tiny", help="whose CLIP embeds pictures and captions")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each network of each side")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--drawn", type=int, default=200, help="how many of them the two decoders draw")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50, help="sampling steps, DDIM on both sides")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("equal-minutes"))
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: a smoke test, not a figure")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.pictures, arguments.scenes, arguments.steps = 0.05, 64, 4, 2
    torch.set_num_threads(arguments.threads)
    pipeline = dalle_2.load(arguments.pipeline)
    data = load_data(pipeline, arguments.pictures, arguments.out)
    compare(data, load_test(pipeline, arguments.scenes), pipeline, arguments)


def compare(data: Data, test: Test, pipeline: Any, arguments: argparse.Namespace) -> None:
    drawn: dict[str, list[Image.Image]] = {"truth": test.pictures}
    seen: dict[str, dict[str, int]] = {"truth": {}}
    for name in ("ours", "theirs"):
        trained = train_side(name, data, arguments)
        results = evaluate(name, trained, test, pipeline, arguments)
        drawn |= results
        seen |= dict.fromkeys(results, trained.seen)
    rows = [row(what, seen[what], read(pictures, test.statements)) for what, pictures in drawn.items()]
    save_sheet(arguments.out / "sheet.png", drawn, test)
    say(f"the sheet lies in {arguments.out / 'sheet.png'}")
    settings = {key: str(value) for key, value in vars(arguments).items()}
    show(rows, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
