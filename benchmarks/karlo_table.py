"""Karlo's own table: FID and CLIP score of its pictures for the captions of a validation set.

    python benchmarks/karlo_table.py --coco captions_val2014.json --pictures val2014 --inception inception-2015-12-05.pt
    python benchmarks/karlo_table.py --folder cc3m-val --inception inception-2015-12-05.pt --n 13000

For one caption of each of --n pictures, chosen by --seed, it draws a picture for each number of the decoder's steps (25
and 50) and lays them into --out, where the next call goes on. True pictures are resized until the shorter side has 256
pixels and cropped around the centre. FID is the Fréchet distance of Inception's features between the drawn pictures and
the true ones that the captions belong to; CLIP score is the mean cosine of a drawn picture and its caption by CLIP
ViT-B/16. Beside them stand the figures that Karlo's authors published.

--coco: COCO's annotations, --folder: a folder of captioned pictures as `dalle2 train --data` takes it. --inception: the
network of FID as TorchScript, which takes 8-bit pictures (B, 3, H, W) and, with return_features=True, gives (B, 2048).
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from report import machine, say, show, table
from torch import Tensor

from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import CheckpointError, DataError, UsageError
from dalle_2.evaluation.frechet import Moments, frechet_distance
from dalle_2.images import from_pil, open_image, save_image, to_pil
from dalle_2.inference.generate import generations
from dalle_2.inference.generation import GenerationSettings
from dalle_2.models.clip_encoding import CLIPEncoder
from dalle_2.models.dalle2 import DALLe2
from dalle_2.paths import atomic_write_text
from dalle_2.pipelines.folder import load

SIZE, BATCH = 256, 8
DECODER_STEPS = "25,50"  # the prior takes 25, super-resolution 7
GUIDANCE = {"prior": 4.0, "decoder": 8.0}
# Set and decoder's steps: CLIP score and FID as published in Karlo's README.
PUBLISHED = {
    ("COCO", 25): (0.3192, 15.24), ("COCO", 50): (0.3192, 14.43),
    ("CC3M", 25): (0.3081, 14.37), ("CC3M", 50): (0.3086, 13.95),
}  # fmt: skip

Features = Callable[[Sequence[Image.Image]], Tensor]


class Pair(NamedTuple):
    """A caption and its true picture, opened when it is asked for."""

    caption: str
    picture: Callable[[], Image.Image]


def main(argv: Sequence[str] | None = None) -> None:
    """Draws what is missing, measures, writes table.md and table.json."""
    options = arguments(argv)
    name = "COCO" if options.coco else "CC3M"
    pairs = from_coco(options.coco, options.pictures) if options.coco else from_folder(options.folder)
    random.Random(options.seed).shuffle(pairs)
    chosen = pairs[: options.n]
    features = inception(options.inception, options.device)
    pipeline = load(options.pipeline, device=options.device)
    encoder = CLIPEncoder(options.clip, device=pipeline.device)
    say(f"the features of {len(chosen)} true pictures")
    true = Moments(features([pair.picture() for pair in some]) for some in batches(chosen))
    rows = [
        row(name, steps, chosen, draw(pipeline, chosen, steps, options), true, features, encoder)
        for steps in map(int, options.steps.split(","))
    ]
    atomic_write_text(options.out / "table.md", f"{table(rows)}\n")
    atomic_write_text(options.out / "table.json", json.dumps({"rows": rows, "machine": machine()}))
    show(rows, {"pipeline": options.pipeline, "fingerprint": pipeline.fingerprint})


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises UsageError unless there is one set of captioned pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--coco", type=Path, help="COCO's annotations of captions")
    parser.add_argument("--pictures", type=Path, help="the folder of COCO's pictures")
    parser.add_argument("--folder", type=Path, help="a folder of captioned pictures in place of COCO")
    parser.add_argument("--inception", type=Path, required=True)
    parser.add_argument("--clip", default="openai/clip-vit-base-patch16")
    parser.add_argument("--pipeline", default="karlo")
    parser.add_argument("--n", type=int, default=30_000)
    parser.add_argument("--steps", default=DECODER_STEPS, help="of the decoder, a comma between them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("karlo-table"))
    options = parser.parse_args(argv)
    if bool(options.coco) == bool(options.folder) or bool(options.coco) != bool(options.pictures):
        raise UsageError("give either --coco with --pictures, or --folder")
    return options


def from_coco(annotations: Path, pictures: Path) -> list[Pair]:
    """One caption a picture, the first; pictures in the order of their numbers. Raises DataError for another file."""
    try:
        found = json.loads(annotations.read_text(encoding="utf-8"))
        names = {item["id"]: item["file_name"] for item in found["images"]}
        captions = {item["image_id"]: item["caption"].strip() for item in reversed(found["annotations"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations} can't be read as COCO's captions ({error!r})") from None
    return [Pair(captions[key], as_seen(pictures / names[key])) for key in sorted(captions)]


def from_folder(folder: Path) -> list[Pair]:
    """The pairs of a folder of captioned pictures."""
    dataset = ImageFolder(folder, SIZE)
    return [Pair(dataset.caption(i), lambda i=i: Image.fromarray(dataset[i].image)) for i in range(len(dataset))]


def as_seen(path: Path) -> Callable[[], Image.Image]:
    """Opens a true picture as the protocol wants it."""
    return lambda: to_pil(from_pil(open_image(path), SIZE, "crop"))


def batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """A few at a time."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def inception(path: Path, device: str) -> Features:
    """Pictures to FID's features. Raises CheckpointError for a file that isn't TorchScript."""
    try:
        network = torch.jit.load(path, map_location="cpu" if device == "auto" else device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as TorchScript ({str(error).splitlines()[0]})") from None

    @torch.no_grad()
    def features(pictures: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        return network(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), return_features=True)

    return features


def draw(pipeline: DALLe2, pairs: Sequence[Pair], steps: int, options: argparse.Namespace) -> list[Path]:
    """A picture for each caption, picture k from seed k; it goes on after those that lie there."""
    home = options.out / f"{pipeline.fingerprint[:8]}-seed-{options.seed}-{steps}-steps"
    home.mkdir(parents=True, exist_ok=True)
    paths = [home / f"{number:06}.png" for number in range(len(pairs))]
    first = next((number for number, path in enumerate(paths) if not path.exists()), len(paths))
    settings = GenerationSettings(stage_steps={"decoder": steps}, guidance=GUIDANCE)
    prompts = [pair.caption for pair in pairs[first:]]
    for made in generations(pipeline, prompts, seed=first, settings=settings):
        save_image(made.image, paths[first + made.index], made.metadata)
        say(f"{steps} steps: {first + made.index + 1} of {len(paths)} pictures")
    return paths


def row(
    name: str, steps: int, pairs: Sequence[Pair], paths: Sequence[Path], true: Moments, features: Features,
    encoder: CLIPEncoder,
) -> dict[str, Any]:  # fmt: skip
    """A line of the table."""
    drawn, cosines = Moments(), []
    for some in batches(list(zip(pairs, paths, strict=True))):
        pictures = [open_image(path) for _, path in some]
        drawn.add(features(pictures))
        z_img, z_txt = encoder.encode_images(pictures), encoder.encode_text([pair.caption for pair, _ in some])
        cosines += torch.cosine_similarity(z_img, z_txt).tolist()
    score, fid = PUBLISHED.get((name, steps), ("–", "–"))
    return {
        "set": name, "decoder's steps": steps, "pictures": len(paths), "CLIP score": f"{np.mean(cosines):.4f}",
        "as published": score, "FID": f"{frechet_distance(drawn, true):.2f}", "FID as published": fid,
    }  # fmt: skip


if __name__ == "__main__":
    main()
