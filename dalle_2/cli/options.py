"""Options that several commands have, written once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dalle_2.cli.consent import ask_first
from dalle_2.inference.saving import Format
from dalle_2.pipelines.find import check_draws
from dalle_2.sampling.sampler_names import NAMES


def drawing(pipeline: str) -> str:
    """Refuses what makes no pictures before anybody is asked for its licence."""
    check_draws(pipeline)
    return ask_first(pipeline)


MOST = 10_000  # pictures for a prompt, or embeddings for one: what must be held at once
IN_ALL = 1_000_000  # pictures of a call
LONGEST = 16_384  # pixels of a side that is asked for

WHERE = "A name from dalle2 models, a folder, or a hub id."
Pipeline = Annotated[str, typer.Option(help=WHERE, callback=drawing)]
PipelineForClip = Annotated[str, typer.Option(help=WHERE, callback=ask_first)]  # which draws nothing
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps; auto is CUDA, else a Mac's GPU, else the processor.")
]
DType = Annotated[str, typer.Option(help="What networks compute in: auto, fp32, bf16, fp16.")]
LowMemory = Annotated[
    bool, typer.Option("--low-memory", help="Only the part at work is in memory; the same pictures, a little later.")
]
Compiled = Annotated[
    bool, typer.Option("--compile", help="torch.compile; the first step takes long; a processor needs a C++ compiler.")
]
Out = Annotated[Path, typer.Option(help="Folder for the pictures.")]
PictureFormat = Annotated[Format, typer.Option(help="Picture format.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the first picture, the next has one more; random by default.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one line a picture.")]
Sheet = Annotated[bool, typer.Option("--grid", help="Also one sheet with all pictures.")]
NoiseLevel = Annotated[
    int | None, typer.Option(min=0, help="Noise on the small picture, for upsamplers trained with noise levels.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the decoder.")]
Candidates = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, help="Embeddings to choose among, a picture or frame; by default 128 where steered."),
]
Eta = Annotated[float, typer.Option(min=0, help="Fresh noise in each step, from 0 to below 1.")]
Sampler = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"The decoder's way from noise to pictures: {', '.join(NAMES)}.")
]
Negative = Annotated[str | None, typer.Option(metavar="TEXT", help="What the pictures shall not show.")]
PriorChoice = Annotated[
    Literal["diffusion", "ar"] | None,
    typer.Option(help="Which prior, in a pipeline that has both; diffusion by default."),
]
Guidance = Annotated[float | None, typer.Option(min=0, help="How closely the decoder follows; 1 is off.")]
