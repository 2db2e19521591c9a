"""The published weights that this package reads: one row each. Whatever fetches, lists or names them looks here."""

from typing import NamedTuple


class Licence(NamedTuple):
    """terms: what it asks for beyond naming its authors, in plain words; empty for a permissive one."""

    name: str
    url: str = ""
    terms: str = ""


class Published(NamedTuple):
    """Weights that others have published.

    name: what they are called here. does: what they are good for. gigabytes: of the files that are read. repo: their
    hub id, or None where no hub has them. page: where they are told of, or linked. draws: whether they make pictures by
    themselves. pipeline: whether `dalle_2.load` takes them by name.
    """

    name: str
    does: str
    licence: Licence
    gigabytes: float
    repo: str | None
    page: str
    draws: bool = False
    pipeline: bool = False


MIT, APACHE = Licence("MIT"), Licence("Apache-2.0")
OPEN_RAIL_M = Licence(
    "CreativeML Open RAIL-M",
    "https://github.com/kakaobrain/karlo/blob/main/LICENSE",
    "You may use the weights and what they draw, commercially too. You may not use them to break the law, to harm, "
    "deceive, defame, expose or discriminate against people, to exploit minors or others who are vulnerable, to decide "
    "automatically about anybody's rights, to advise in medicine, or for justice, police and asylum. Whoever passes "
    "the weights on, or weights made from them, passes on the licence and these limits.",
)

DEFAULT_CLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"  # 512 numbers an embedding
KARLO_CLIP = "openai/clip-vit-large-patch14"
HUB = "https://huggingface.co"

PUBLISHED = (
    Published(
        "karlo", "text to picture at 256 pixels, text interpolation, inpainting", OPEN_RAIL_M, 13.7,
        "kakaobrain/karlo-v1-alpha", f"{HUB}/kakaobrain/karlo-v1-alpha", draws=True, pipeline=True,
    ),
    Published(
        "karlo-variations", "variations of pictures and the way between two, at 256 pixels; no prior", OPEN_RAIL_M,
        10.8, "kakaobrain/karlo-v1-alpha-image-variations", f"{HUB}/kakaobrain/karlo-v1-alpha-image-variations",
        draws=True, pipeline=True,
    ),
    Published(
        "karlo-original", "Karlo's own .ckpt files, with clip-vit-l-14: text to picture, and variations too",
        OPEN_RAIL_M, 13.2, None, "https://github.com/kakaobrain/karlo", draws=True,
    ),
    Published(
        "kandinsky-2.1-prior", "captions to image embeddings of CLIP ViT-L/14, those of Karlo's decoder, by embed() "
        "in Python", APACHE, 5.8, "kandinsky-community/kandinsky-2-1-prior",
        f"{HUB}/kandinsky-community/kandinsky-2-1-prior", pipeline=True,
    ),
    Published(
        "kandinsky-2.2-prior", "captions to image embeddings of CLIP ViT-bigG/14, by embed() in Python", APACHE, 14.3,
        "kandinsky-community/kandinsky-2-2-prior", f"{HUB}/kandinsky-community/kandinsky-2-2-prior", pipeline=True,
    ),
    Published(
        "glide", "text to picture at 256 pixels, and into holes; four networks and a vocabulary", MIT, 3.1, None,
        "https://github.com/openai/glide-text2im", draws=True,
    ),
    Published(
        "dall-e-dvae", "pictures of 256 pixels to 1,024 codes of 8,192 and back, by load_dvae() in Python", MIT, 0.39,
        None, "https://github.com/openai/DALL-E",
    ),
    Published(
        "clip-vit-b-32", "OpenCLIP's encoder of texts and pictures that training on folders uses", MIT, 0.61,
        DEFAULT_CLIP, f"{HUB}/{DEFAULT_CLIP}",
    ),
    Published(
        "clip-vit-l-14", "OpenAI's encoder of texts and pictures that Karlo's own files need", MIT, 1.71,
        KARLO_CLIP, f"{HUB}/{KARLO_CLIP}",
    ),
)  # fmt: skip


def published_as(name: str) -> Published | None:
    """The row of a name or of a hub id."""
    return next((row for row in PUBLISHED if name in (row.name, row.repo)), None)
