"""Mutated tables and files of captions beside pictures, and files of prompts."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

from dalle_2.data.image_folder import ImageFolder
from dalle_2.text.prompt_files import prompts_from
from dalle_2.text.prompts import check_prompts
from hostile.harness import Case
from hostile.mutations import mutated

MEMORY = 600 * 10**6
CSV = 'file,caption\na.png,a red circle\nb.png,"a blue square, large"\n"sub/c.png","two\nlines"\n'
JSONL = '{"file_name": "a.png", "text": "a red circle"}\n{"file_name": "b.png", "text": ["one", "two"]}\n'
TEXT = "a red circle\na second caption, with é and 漢字\n\n# a comment\n"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1")
NAMES = (
    "../a.png",
    "/etc/passwd",
    "/dev/zero",
    "a\0.png",
    "x" * 5000,
    "sub/../a.png",
    "C:\\a.png",
    "\ud800.png",
    ".",
    "",
)


def _text(random: Random, kind: str) -> str:
    """The content of a file of captions, whole or odd as a whole."""
    plain = {"csv": CSV, "tsv": CSV.replace(",", "\t"), "jsonl": JSONL, "json": '{"caption": ["one", "two"]}'}.get(
        kind, TEXT
    )
    return random.choice([*[lambda _random, _kind: plain] * 6, *_ODD])(random, kind)


def _deep(random: Random, kind: str) -> str:
    depth = random.choice((10, 900, 5000, 200_000))
    return '{"file": "a.png", "caption": ' + "[" * depth + "]" * random.choice((0, depth)) + "}"


def _wide(random: Random, kind: str) -> str:
    columns = [f"c{number}" for number in range(random.choice((3, 300, 20_000)))] + ["file", "caption"]
    random.shuffle(columns)
    return "\n".join(random.choice(",;|\t").join(columns) for _ in range(random.choice((1, 3))))


def _long(random: Random, kind: str) -> str:
    return f'file,caption\na.png,"{"long " * random.choice((10, 30_000, 400_000))}{random.choice(chr(34) + " ")}\n'


def _named(random: Random, kind: str) -> str:
    rows = [(random.choice((*NAMES, "a.png")), "a caption") for _ in range(random.choice((1, 4, 40)))]
    if kind == "jsonl":
        return "\n".join(json.dumps({"file": name, "caption": said}) for name, said in rows)
    return "\n".join(["file,caption", *(f'"{name}",{said}' for name, said in rows)])


def _many(random: Random, kind: str) -> str:
    heading, row = random.choice(
        (("file,caption", 'a.png,"x'), ("file,caption", "a.png"), ("sep=;\nfile;caption", "a.png;y"))
    )
    return "\n".join([heading, *[row] * random.choice((10, 3000))])


def _values(random: Random, kind: str) -> str:
    values = [None, True, 1e308, -1, {"a": 1}, [[]], ["x", 3], "\ud800", "\0", 10**400, "NaN"]
    rows = [
        {random.choice(("file", "image", "x")): random.choice([*values, "a.png"]), "text": random.choice(values)}
        for _ in range(3)
    ]
    return "\n".join(map(json.dumps, rows)).replace('"NaN"', "NaN")


_ODD = (_deep, _wide, _long, _named, _many, _values)


def _content(random: Random, kind: str) -> bytes:
    data = _text(random, kind).encode(random.choice(ENCODINGS), "replace")
    if len(data) > 10**5 or random.random() < 0.3:
        return data
    return mutated(random, data, [CSV.encode(), JSONL.encode(), TEXT.encode("utf-16")])


def _folder(name: str) -> Callable[[Random, Path], Path]:
    """What makes a folder of three pictures and a file of that name; the second picture has a sound caption."""

    def make(random: Random, folder: Path) -> Path:
        (folder / "sub").mkdir()
        for picture in ("a.png", "b.png", "sub/c.png"):
            Image.new("RGB", (4, 4)).save(folder / picture)
        (folder / "b.txt").write_text("a blue square", encoding="utf-8")
        (folder / name).write_bytes(_content(random, name.rpartition(".")[2]))
        return folder

    return make


def read(folder: Path) -> None:
    """As a training does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = ImageFolder(folder, 4)
        str(data.verify())
        data.fingerprint()
        [data.caption(row) for row in range(len(data))]


def _prompts(random: Random, folder: Path) -> Path:
    (folder / "prompts.txt").write_bytes(_content(random, "txt"))
    return folder / "prompts.txt"


def read_prompts(path: Path) -> None:
    check_prompts(prompts_from(path))


FILES = ("captions.csv", "captions.tsv", "metadata.jsonl", "sub/metadata.csv", "a.txt", "a.caption", "a.json")


def _of_any_name(random: Random, folder: Path) -> Path:
    return _folder(random.choice(FILES))(random, folder)


CASES = {name: Case(_folder(name), read, MEMORY) for name in FILES}
CASES |= {"of any name": Case(_of_any_name, read, MEMORY), "prompts": Case(_prompts, read_prompts, MEMORY)}
