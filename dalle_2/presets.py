"""The table of named recipes, and the ways to change one."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dalle_2.cached import cached_clip
from dalle_2.config import override, parse, read_toml
from dalle_2.errors import UsageError
from dalle_2.models.autoregressive_prior import AutoregressivePriorConfig
from dalle_2.models.clip import CLIPConfig, VisionConfig
from dalle_2.models.decoder import DecoderConfig
from dalle_2.models.decoder_unet import DecoderUNetConfig
from dalle_2.models.draft import DraftConfig
from dalle_2.models.layers.text_transformer import TextConfig
from dalle_2.models.prior import PriorConfig
from dalle_2.models.upsampler import UpsamplerConfig
from dalle_2.paths import at_home
from dalle_2.published import DEFAULT_CLIP
from dalle_2.training.paper import PAPER, PAPER_RECIPE
from dalle_2.training.recipe import (
    AutoregressivePriorStage,
    ClipStage,
    DataSettings,
    DecoderStage,
    DraftStage,
    InpaintStage,
    PriorStage,
    Recipe,
    RunSettings,
    UpsamplerStage,
)

_TINY = Recipe(
    name="shapes-tiny",
    data=DataSettings(source="shapes", clip_options={"siblings": 4, "seed": 1}, shuffle=False),
    embeddings=250_000,
    directions=96,
    clip=ClipStage(
        config=CLIPConfig(
            vision=VisionConfig(
                image_size=64, patch=8, stem="conv", stem_blocks=2, pool="grid", width=128, depth=1, heads=4
            ),
            text=TextConfig(width=128, depth=3, heads=4, context_length=48),
            embed_dim=256,
            centred=True,
            phrases=8192,
            thumbnail=64,
        ),
        run=RunSettings(
            images=200_000,
            batch=32,
            lr=2.5e-3,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            ema_halflife=4000,
            dtype="fp32",  # as fast in batches this small, and it tells left from right earlier
        ),
    ),
    prior=PriorStage(
        config=PriorConfig(
            target="x_0", sigma_data=None, dim=256, width=256, depth=1, heads=4, refine=4, steps=25, guidance=2.0,
            candidates=48,
        ),
        run=RunSettings(images=4_000_000, batch=1024, lr=4e-3, ema_halflife=60_000),
    ),
    prior_ar=AutoregressivePriorStage(
        directions=96,
        config=AutoregressivePriorConfig(width=192, depth=3, heads=4, buckets=256, waves=64, candidates=16),
        run=RunSettings(images=200_000, batch=256, lr=3e-3, ema_halflife=8_000),
    ),
    draft=DraftStage(
        config=DraftConfig(image_size=64, width=384, depth=3, channels=64, z_noise=0.1),
        run=RunSettings(images=1_100_000, batch=64, lr=2.4e-3, ema_halflife=8_000),
    ),
    decoder=DecoderStage(
        config=DecoderConfig(
            image_size=64,
            sigma_data=None,  # `carry` does as much where x_0 is predicted
            steps=1,  # more of them fray the outlines of the draft
            z_noise=0.1,
            drop=0.02,  # rows without a draft cost ten times as much loss as the others, which would learn little
            unet=DecoderUNetConfig(
                channels=32, multiples=(1, 2, 4, 4), blocks=1, attention=(2, 3), head_channels=32, patch=2, t_dim=128,
                carry=True,
            ),
        ),
        run=RunSettings(images=6_000, batch=32, lr=2e-3, warmup=500, ema_halflife=800, preview_every=2_000),
    ),
    upsampler=UpsamplerStage(
        config=UpsamplerConfig(
            image_size=256,
            low_res_size=64,
            sigma_data=None,
            crop=96,
            steps=4,
            corruption=0.05,
            unet=DecoderUNetConfig(
                channels=48, multiples=(1, 2), blocks=1, attention=(), middle_attention=False, context_tokens=0,
                patch=4, t_dim=128, low_res_channels=3,
            ),
        ),
        run=RunSettings(images=10_000, batch=8, lr=1.5e-3, ema_halflife=1000),
    ),
)  # fmt: skip

_MICRO = override(
    _TINY.model_copy(update={"name": "shapes-micro", "embeddings": 4_000, "prior_ar": None}),
    {
        "clip.run.images": 6_000, "clip.captions": 5_000,
        "clip.config.vision.depth": 2, "clip.config.text.depth": 2,
        "prior.run.images": 60_000, "prior.run.batch": 256, "prior.run.lr": 2e-3, "prior.run.ema_halflife": 4_000,
        "prior.config.width": 128, "prior.config.refine": 3,
        "draft.run.images": 6_000, "draft.run.batch": 64, "draft.run.lr": 2e-3,
        "draft.config.width": 128, "draft.config.channels": 16,
        "decoder.run.images": 600, "decoder.run.ema_halflife": 500, "decoder.config.unet.channels": 32,
        "decoder.config.unet.multiples": (1, 2), "decoder.config.unet.attention": (1,),
        "upsampler.run.images": 1_000, "upsampler.config.unet.channels": 24,
    },
)  # fmt: skip

# One more decoder, which was trained to fill holes and reads captions.
_FULL = _TINY.model_copy(
    update={
        "name": "shapes-full",
        "decoder_inpaint": InpaintStage(
            caption="clip", run=RunSettings(images=20_000, batch=32, lr=1.5e-3, warmup=1_000, ema_halflife=3_000)
        ),
    }
)

# A quarter of the side is what the paper's upsamplers see at a time. The second one learns from pictures that are worse
# than those it will get, and forgives what the first one leaves.
_1024 = _MICRO.model_copy(
    update={
        "name": "shapes-1024",
        "upsampler_2": UpsamplerStage(
            config=UpsamplerConfig(
                image_size=1024,
                low_res_size=256,
                sigma_data=None,
                crop=256,
                steps=4,
                degradation="bsr",
                unet=DecoderUNetConfig(
                    channels=32, multiples=(1, 2), blocks=1, attention=(), middle_attention=False, context_tokens=0,
                    patch=4, t_dim=128, low_res_channels=3,
                ),
            ),
            run=RunSettings(images=1_000, batch=4, lr=1.5e-3, warmup=100, ema_halflife=200),
        ),
    }
)

_READERS = ("prior", "prior_ar", "decoder")

# The paper's parts, about as small: no draft, captions read word by word by both priors and the decoder, which learns
# its variance and loses its conditions as often as the paper's, two candidates, an upsampler that sees no embedding.
_PAPER_SMALL = override(
    _MICRO.model_copy(
        update={
            "name": "shapes-paper",
            "draft": None,
            "prior_ar": _TINY.prior_ar,
            "decoder_inpaint": InpaintStage(
                run=RunSettings(images=1_600, batch=16, lr=1.5e-3, warmup=160, ema_halflife=300)
            ),
        }
    ),
    {
        **{f"{stage}.caption": "own" for stage in _READERS},
        **{f"{stage}.text": TextConfig(width=128, depth=2, heads=4) for stage in _READERS},
        "prior.config.depth": 2, "prior.config.refine": 0, "prior.config.candidates": 2,
        "prior.run.images": 24_000, "prior.run.batch": 128, "prior.run.ema_halflife": 2_000,
        "prior_ar.directions": 48, "prior_ar.config.width": 128, "prior_ar.config.depth": 2,
        "prior_ar.config.candidates": 2,
        "prior_ar.run.images": 16_000, "prior_ar.run.batch": 64, "prior_ar.run.ema_halflife": 1_000,
        "decoder.config.steps": 25, "decoder.config.drop": 0.1,
        "decoder.config.learned_variance": True, "decoder.config.unet.out_channels": 6,
        "decoder.config.unet.multiples": (1, 2, 4), "decoder.config.unet.attention": (1, 2),
        "decoder.run.images": 8_000, "decoder.run.batch": 16, "decoder.run.ema_halflife": 1_000,
        "upsampler.config.unet.z_dim": 0, "upsampler.config.corruption": 0.0,
        "upsampler.config.noise_levels": 100, "upsampler.config.noise_level": 30,
    },
)  # fmt: skip

# A folder is embedded whole. Its embeddings fill no more directions than its pictures are many, and a draft of few
# pictures would know them by heart. Without a draft, candidates can't be looked at; chosen by their dot product with
# the text alone they get worse with their number. And the decoder has to draw the whole picture, which takes its steps.
_OF_A_FOLDER = {
    "embeddings": None, "directions": None, "draft": None, "prior_ar": None, "prior.config.candidates": 1,
    "decoder.config.steps": 20, "decoder.config.drop": 0.1,
}  # fmt: skip

_FOLDER = override(
    _TINY.model_copy(update={"name": "my-pictures", "data": DataSettings(source=".")}),
    {**_OF_A_FOLDER, "clip.run.images": 20_000, "clip.vocabulary": 2048,
     "prior.run.images": 400_000, "prior.run.batch": 256, "prior.run.lr": 2e-3, "prior.run.ema_halflife": 20_000,
     "decoder.run.images": 20_000, "decoder.run.warmup": 2_000, "decoder.run.ema_halflife": 4_000,
     "decoder.run.preview_every": 4_000, "upsampler.run.images": 4_000},
)  # fmt: skip

PRESETS = {recipe.name: recipe for recipe in (_TINY, _FULL, _MICRO, _PAPER_SMALL, _1024, _FOLDER, PAPER_RECIPE)}


def preset(name: str) -> Recipe:
    """The recipe of that name; one model of the paper stands for all of them. Raises UsageError naming the nearest."""
    if name in PAPER:
        return PAPER_RECIPE
    if name not in PRESETS:
        known = [*PRESETS, *PAPER]
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}, or give a TOML file"
        raise UsageError(f"no preset is called {name!r}: {hint}")
    return PRESETS[name]


def resolve(
    names: Sequence[str], *, data: str | Path | None = None, changes: Sequence[str] = (), scale: float = 1.0
) -> Recipe:
    """The recipe a command line means: a preset or a TOML file, a folder of pictures, changes, a length.

    A TOML file may name the preset it starts from (`preset = "shapes-tiny"`); its other keys override that.
    Raises UsageError for names that don't exist and a scale that isn't positive, ConfigError for unknown keys.
    """
    if not 0 < scale < math.inf:
        raise UsageError(f"scale must be above 0, got {scale}: 2 trains twice as long, 0.5 half as long")
    recipe = _named(names[0] if names else ("my-pictures" if data else "shapes-tiny"), data)
    return override(recipe.scaled(scale), dict(_pair(change) for change in changes))


def _named(name: str, data: str | Path | None) -> Recipe:
    """A preset or a TOML file; a folder comes in below the file's own keys, which win."""
    values = read_toml(name) if name.endswith(".toml") else {"preset": name}
    base = values.pop("preset", None)
    if base is None:
        recipe = parse(Recipe, values, where=name)
        return recipe if data is None else override(recipe, {"data.source": folder_source(data)})
    recipe = preset(base) if data is None else on_folder(preset(base), data)
    return override(recipe, dict(flattened(values)))


def flattened(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Nested tables as dotted keys."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += flattened(value, f"{path}{key}.") if isinstance(value, dict) else [(path + key, value)]
    return pairs


def on_folder(recipe: Recipe, folder: str | Path) -> Recipe:
    """The recipe for a folder of captioned pictures, with a published CLIP if one is in the local cache.

    One that already names its CLIP was made for folders, and stays as it is.
    """
    source = DataSettings(source=folder_source(folder))
    if recipe.clip.encoder is not None:
        return recipe.model_copy(update={"name": at_home(folder).resolve().name, "data": source})
    encoder = DEFAULT_CLIP if cached_clip(DEFAULT_CLIP) else None
    named = recipe.model_copy(update={"name": at_home(folder).resolve().name, "data": source})
    return override(named, {**_OF_A_FOLDER, **_instead_of_a_draft(recipe), "clip.encoder": encoder})


def _instead_of_a_draft(recipe: Recipe) -> dict[str, Any]:
    """A decoder that draws by itself gets the minutes that its draft would have had: an eighth of the pictures."""
    if recipe.draft is None:
        return {}
    images = max(2_000, recipe.draft.run.images // 8)
    return {"decoder.run.images": images, "decoder.run.warmup": 2_000, "decoder.run.ema_halflife": 4_000}


def folder_source(folder: str | Path) -> str:
    """A folder as a data source: never mistaken for a data set's name, and the same from wherever it is named.

    An address is taken as it is, and only as text: a Path would make one slash of its two.
    """
    return f"folder:{folder if '://' in str(folder) else at_home(folder).resolve()}"


def _pair(change: str) -> tuple[str, str]:
    key, sign, value = change.partition("=")
    if not sign:
        raise UsageError(f"--set takes key=value, got {change!r}: write for example decoder.run.images=50000")
    return key, value
