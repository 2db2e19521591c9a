"""Control codes of strangers on every way out of a command: as escapes, none of them raw."""

import contextlib
import csv
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dalle_2
from dalle_2.bars import bars, named
from dalle_2.cli import main as door
from dalle_2.cli.counting import progress
from dalle_2.cli.main import main
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError, HubError
from dalle_2.images import save_image
from dalle_2.pipelines.dvae import load_dvae
from dalle_2.terminal import json_shown, on_one_line, plain_streams, returning, shown
from dalle_2.training.progress import Bar, Lines, Report

# A title for the terminal, a colour by C1, an override of the direction of writing, a separator of lines, DEL.
EVIL = "x\x1b]0;owned\x07\x9b31m\u202e\u2028\x7fy"
HARMLESS = "\u200d\ufe0f\u200e👩\u200d🚀 é\t"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPED = re.compile(r"\\(x1b|x9b|x7f|u001b|u009b|u202e)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


# The one function


def test_codes_are_escaped_and_letters_stay() -> None:
    assert shown(EVIL) == r"x\x1b]0;owned\x07\x9b31m\u202e\u2028\x7fy"
    assert shown(HARMLESS + "\n") == HARMLESS + "\n"
    assert on_one_line("a\n\tb") == r"a\n\tb"
    assert shown("\udce9") == r"\udce9"
    every = "".join(map(chr, [*range(0x300), *range(0x2000, 0x2070), *range(0xD7F0, 0xE010)]))
    assert not RAW.search(shown(every))
    assert RAW.sub("", every) == re.sub(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|r)", "", shown(every))


def test_json_says_the_same_with_and_without_codes() -> None:
    values = {EVIL: [EVIL, HARMLESS, "\udce9\n"], "plain": "é"}
    text = json_shown(json.dumps(values, ensure_ascii=False))
    assert json.loads(text) == values
    assert not RAW.search(text)
    assert "é" in text


# The ways out, by what brings the codes there. Each is given a folder to prepare, in which it stands.

WAYS: dict[str, Callable[[Path], list[str]]] = {}
Way = Callable[[Path], list[str]]


def way(function: Way) -> Way:
    """One of the ways: prepares, and says which command then is called."""
    WAYS[function.__name__] = function
    return function


def picture(name: str, **metadata: Any) -> str:
    save_image(Image.new("RGB", (4, 4)), name, metadata)
    return name


def fails(error: BaseException) -> list[str]:
    """A command that meets an error."""

    def fail() -> None:
        raise error

    return command(fail)


def command(function: Callable[[], None]) -> list[str]:
    """A command that does something."""
    sys.modules["dalle_2.cli.stray"] = types.SimpleNamespace(stray=function)  # type: ignore[assignment]
    return ["stray"]


@way
def prompt_of_a_picture(_: Path) -> list[str]:
    return ["show", picture("p.png", prompt=EVIL)]


@way
def prompt_of_a_jpeg(_: Path) -> list[str]:
    return ["show", picture("p.jpg", prompt=EVIL)]


@way
def key_in_a_picture(_: Path) -> list[str]:
    return ["show", picture("p.png", **{EVIL: 1})]


@way
def provenance_inside_a_picture(_: Path) -> list[str]:
    return ["show", picture("p.png", pipeline={EVIL: [EVIL]})]


@way
def picture_as_json(_: Path) -> list[str]:
    return ["show", "--json", picture("p.png", **{EVIL: EVIL})]


@way
def name_of_a_picture(_: Path) -> list[str]:
    return ["show", picture(f"{EVIL}.png", seed=1)]


@way
def name_of_a_missing_picture(_: Path) -> list[str]:
    return ["show", f"{EVIL}.png"]


@way
def name_of_a_foreign_picture(_: Path) -> list[str]:
    Image.new("RGB", (4, 4)).save(f"{EVIL}.png")
    return ["show", f"{EVIL}.png"]


@way
def prompts_file(_: Path) -> list[str]:
    return ["generate", "--prompts", f"{EVIL}.txt"]


@way
def prompt_that_is_no_text(_: Path) -> list[str]:
    return ["generate", "ok", "--prompts", EVIL + "\udce9"]


@way
def name_of_a_pipeline(_: Path) -> list[str]:
    return ["generate", "a red circle", "--pipeline", EVIL]


@way
def folder_without_a_pipeline(here: Path) -> list[str]:
    (here / EVIL).mkdir()
    return ["generate", "a red circle", "--pipeline", EVIL]


@way
def neighbours_of_a_missing_pipeline(here: Path) -> list[str]:
    stranger(here / "home" / EVIL, {"name": "a", "parts": {}})
    return ["generate", "a red circle", "--pipeline", "home/none"]


def stranger(folder: Path, manifest: Any) -> Path:
    """A pipeline's folder with that in its pipeline.json."""
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(json.dumps(manifest))
    return folder


@way
def key_of_a_manifest(here: Path) -> list[str]:
    return ["generate", "a red circle", "--pipeline", str(stranger(here / "p", {"name": "a", "parts": {}, EVIL: 1}))]


@way
def value_in_a_manifest(here: Path) -> list[str]:
    manifest = {"name": "a", "parts": {EVIL: {"file": EVIL}}}
    return ["generate", "a red circle", "--pipeline", str(stranger(here / "p", manifest))]


@way
def file_that_a_manifest_lacks(here: Path) -> list[str]:
    manifest = {"name": EVIL, "parts": {"clip": {"file": "none.safetensors"}, EVIL: {"file": "no"}}}
    return ["generate", "a red circle", "--pipeline", str(stranger(here / EVIL, manifest))]


@way
def listing_of_models(here: Path) -> list[str]:
    stranger(here / "trained_models" / f"{EVIL}\nforged", {"name": "a", "parts": {EVIL: {"file": "a"}}})
    return ["models"]


@way
def broken_model_in_the_listing(here: Path) -> list[str]:
    stranger(here / "trained_models" / "b", {EVIL: EVIL})
    return ["models"]


@way
def listing_of_models_as_json(here: Path) -> list[str]:
    stranger(here / "trained_models" / EVIL, {"name": "a", "parts": {EVIL: {"file": "a"}}})
    return ["models", "--json"]


@way
def class_of_an_index(here: Path) -> list[str]:
    (here / "p").mkdir()
    (here / "p" / "model_index.json").write_text(json.dumps({"_class_name": EVIL}))
    return ["generate", "a red circle", "--pipeline", "p"]


@way
def class_in_a_pickle(here: Path) -> list[str]:
    (here / "encoder.pkl").write_bytes(b"\x80\x02c" + f"os{EVIL}".replace("\u2028", "").encode() + b"\nsystem\n.")

    def read() -> None:
        load_dvae(here)

    return command(read)


@way
def name_of_a_command(_: Path) -> list[str]:
    return [EVIL]


@way
def name_of_an_option(_: Path) -> list[str]:
    return ["generate", f"--{EVIL}"]


@way
def value_of_an_option(_: Path) -> list[str]:
    return ["generate", "a", "--threshold", EVIL]


@way
def key_of_a_recipe(here: Path) -> list[str]:
    (here / "r.toml").write_text(f"{json.dumps(EVIL).replace(chr(127), '')} = 1\n")
    return ["train", "r.toml", "--show"]


@way
def recipe_that_is_no_toml(here: Path) -> list[str]:
    (here / f"{EVIL}.toml").write_text("=")
    return ["train", f"{EVIL}.toml"]


@way
def recipe_as_json(here: Path) -> list[str]:
    (here / "r.toml").write_text(f'preset = "shapes-micro"\n[data]\nsource = {json.dumps("folder:" + EVIL[:-2])}\n')
    return ["train", "r.toml", "--show"]


@way
def setting_of_a_recipe(_: Path) -> list[str]:
    return ["train", "--set", f"{EVIL}=1", "--show"]


@way
def folder_of_pictures(here: Path) -> list[str]:
    (here / EVIL).mkdir()
    return ["train", "--data", EVIL, "--quiet"]


def captioned(here: Path, rows: list[list[str]]) -> list[str]:
    """A folder with one picture and a table."""
    picture(str(here / "a.png"))
    with (here / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return ["train", "--data", str(here), "--quiet"]


@way
def column_of_a_table(here: Path) -> list[str]:
    return captioned(here, [[EVIL, f"{EVIL}2"], ["a.png", "red"]])


@way
def file_that_a_table_names(here: Path) -> list[str]:
    return captioned(here, [["file", "caption"], [EVIL, "red"]])


@way
def caption_that_is_no_json(here: Path) -> list[str]:
    picture(str(here / "a.png"))
    (here / "a.json").write_text(json.dumps([EVIL], ensure_ascii=False))
    return ["train", "--data", str(here), "--quiet"]


@way
def unreadable_pictures_of_a_folder(here: Path) -> list[str]:
    for name in (picture("a.png"), f"{EVIL}.png"):
        Path(name).with_suffix(".txt").write_text(EVIL)
    (here / f"{EVIL}.png").write_text("none")
    return command(lambda: typer.echo(f"warning: {ImageFolder(here, 8).verify()}", err=True))


@way
def warning_of_any_package(_: Path) -> list[str]:
    return command(lambda: warnings.warn(EVIL, UserWarning, stacklevel=1))


@way
def log_of_any_package(_: Path) -> list[str]:
    def log() -> None:
        logging.StreamHandler().emit(logging.makeLogRecord({"msg": EVIL}))

    return command(log)


@way
def print_of_any_package(_: Path) -> list[str]:
    return command(lambda: print(EVIL, file=sys.stderr))


@way
def error_in_a_thread(_: Path) -> list[str]:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            thread = threading.Thread(target=sys.stderr.write, args=(EVIL,))
            thread.start()
            thread.join()

    return command(run)


@way
def answer_of_a_server(_: Path) -> list[str]:
    return fails(HubError(f"could not be fetched ({EVIL})"))


@way
def error_of_any_package(_: Path) -> list[str]:
    return fails(RuntimeError(EVIL))


@way
def traceback_of_an_error(_: Path) -> list[str]:
    return ["--debug", *fails(DataError(EVIL))]


@way
def file_of_the_system(_: Path) -> list[str]:
    return fails(PermissionError(13, "Permission denied", EVIL))


@way
def package_that_is_missing(_: Path) -> list[str]:
    return fails(ImportError(EVIL, name=EVIL))


@way
def title_of_a_bar(_: Path) -> list[str]:
    def count() -> None:
        with progress(f"[bold]{EVIL}[/none]", 1, False) as advance:
            advance(1)

    return command(count)


@way
def lines_of_a_training(_: Path) -> list[str]:
    def train() -> None:
        lines = Lines(every=0)
        lines.start(EVIL, 0, 1)
        lines.step(Report(1, 1, {EVIL: 0.5}))

    return command(train)


@way
def bar_of_a_training(_: Path) -> list[str]:
    def train() -> None:
        bar = Bar()
        bar.start(f"[bold]{EVIL}[/none]", 0, 1)
        bar.close()

    return command(train)


@pytest.fixture
def stray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command for what no command of ours can be brought to do."""
    monkeypatch.setitem(door.COMMANDS, "stray", "Stray.")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield
    sys.modules.pop("dalle_2.cli.stray", None)


def test_there_are_thirty_ways_and_more() -> None:
    assert len(WAYS) >= 30


@pytest.mark.usefixtures("stray")
@pytest.mark.parametrize("name", WAYS)
def test_no_code_gets_out_raw(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = WAYS[name](workdir)
    main(arguments)
    caught = capsys.readouterr()
    said = caught.out + caught.err
    assert not RAW.search(said), said
    assert ESCAPED.search(said), said  # it was said, and not left out


@pytest.mark.parametrize("wanted", [["show", "--json", "p.png"], ["models", "--json"], ["train", "r.toml", "--show"]])
def test_what_is_printed_as_json_is_exact(wanted: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = EVIL[:-2] + "y"  # TOML takes no DEL
    picture("p.png", prompt=evil)
    stranger(workdir / "trained_models" / evil, {"name": "a", "parts": {}})
    Path("r.toml").write_text(f'preset = "shapes-micro"\n[data]\nsource = {json.dumps(f"folder:{evil}")}\n')
    assert main(wanted) == 0
    out = capsys.readouterr().out
    first = json.loads(out) if wanted[0] == "train" else json.loads(out.splitlines()[0])
    values = [first.get("prompt"), first.get("name"), first.get("data", {}).get("source")]
    assert {evil, f"folder:{evil}"} & {*values}


def test_a_value_forges_no_line(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture("p.png", prompt="red\ndalle2: all is well", **{"a\nb": "c\td"})
    assert main(["show", "p.png"]) == 0
    assert capsys.readouterr().out.splitlines() == ["p.png", r"  prompt  red\ndalle2: all is well", r"  a\nb    c\td"]


# Of weights and drawn pictures


def test_names_of_tensors_and_prompts_in_drawing(
    micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(micro_pipeline, workdir / EVIL)
    Path("p.txt").write_text(f"a red {EVIL}\n")
    call = ["generate", "--prompts", "p.txt", "--pipeline", EVIL, "--device", "cpu", "--out", EVIL + "out"]
    assert main(call) == 0
    said = "".join(capsys.readouterr())
    assert not RAW.search(said)
    assert len(ESCAPED.findall(said)) > 3
    assert main([*call, "--json", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert not RAW.search(out)
    assert json.loads(out)["prompt"] == f"a red {EVIL}"

    weights = workdir / EVIL / "decoder.safetensors"
    manifest = json.loads((workdir / EVIL / "pipeline.json").read_text())
    manifest["parts"]["decoder"]["sha256"] = ""
    (workdir / EVIL / "pipeline.json").write_text(json.dumps(manifest))
    with safe_open(weights, framework="pt") as file:
        header = file.metadata()
    save_file({**load_file(weights), EVIL: torch.zeros(1)}, weights, metadata=header)
    assert main(call) == 1
    said = "".join(capsys.readouterr())
    assert "not known here" in said
    assert not RAW.search(said)
    save_file(
        load_file(weights), weights, metadata={"dalle_2": header["dalle_2"].replace('"decoder"', json.dumps(EVIL))}
    )
    assert main(call) == 1
    said = "".join(capsys.readouterr())
    assert not RAW.search(said)
    assert ESCAPED.search(said)


# On a terminal

CHILD = """
import sys, time, warnings
from dalle_2.bars import bars, named
from dalle_2.terminal import plain_streams
from rich.progress import BarColumn
evil = sys.argv[1]
with plain_streams():
    with bars(named(), BarColumn()) as shown:
        task = shown.add_task(evil, total=2)
        print("OUT", evil)
        print("ERR", evil, file=sys.stderr)
        shown.advance(task)
    print("AFTER", evil)
"""

# What a command that draws does to the terminal, without a model.
DRAWS = """
from types import SimpleNamespace
from dalle_2.cli.counting import progress
from dalle_2.cli.stage_progress import loading, stage_progress
from dalle_2.cli.stopwatch import Stopwatch
from dalle_2.terminal import plain_streams
with plain_streams():
    watch = Stopwatch()
    with loading("name", watch, quiet=False):
        pass
    with stage_progress({"decoder": 2}, watch, quiet=False) as shown:
        for index in range(2):
            shown.step("decoder", SimpleNamespace(index=index, total=2))
    with progress("scenes", 1, False) as advance:
        advance(1)
"""


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """All that a process writes whose three streams are a terminal."""
    master, slave = pty.openpty()
    values = {**os.environ, "PYTHONPATH": str(Path(dalle_2.__file__).parents[1]), "TERM": "xterm-256color"}
    values.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=slave, stdout=slave, stderr=slave, env={**values, **environment}
    )
    os.close(slave)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while block := os.read(master, 65536):
            said += block
    os.close(master)
    process.wait()
    return said.decode()


def no_codes_of_strangers(said: str) -> bool:
    """Whether all codes in it are those that move a cursor, and none of what EVIL has."""
    moves = re.compile(r"\x1b\[(\?25[hl]|[0-9;]*[A-HJKm])|\r")
    return not RAW.search(moves.sub("", said).replace("\r", ""))


def test_bars_move_on_a_terminal_and_strangers_dont() -> None:
    said = on_a_terminal("-c", CHILD, EVIL + "\x1b[31m")
    assert "\x1b[?25l" in said  # a bar was drawn, by codes of ours
    for word in ("OUT", "ERR", "AFTER"):
        assert rf"{word} x\x1b]0;owned\x07\x9b31m\u202e\u2028\x7fy\x1b[31m" in said
    assert no_codes_of_strangers(said)


def test_a_picture_sets_no_title(workdir: Path) -> None:
    picture("p.png", prompt=EVIL)
    said = on_a_terminal("-m", "dalle_2", "show", "p.png")
    assert not RAW.search(said.replace("\r\n", "\n"))
    assert r"\x1b]0;owned\x07" in said


def test_a_dumb_terminal_gets_no_code_and_who_wants_no_colour_none() -> None:
    dumb = on_a_terminal("-c", DRAWS, TERM="dumb")
    assert not RAW.search(dumb.replace("\r\n", "\n"))
    assert "decoder: 2 steps" in dumb  # lines in place of bars
    plain = on_a_terminal("-c", DRAWS, NO_COLOR="1")
    assert "\x1b[?25l" in plain
    assert not COLOUR.search(plain)
    assert COLOUR.search(on_a_terminal("-c", DRAWS))


# What draws with codes of its own


def test_bars_of_other_packages_may_return(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_streams():
        with returning():
            sys.stderr.write("\r50 %\x1b[A")
        sys.stderr.write("\rforged")
    assert capsys.readouterr().err == "\r50 %\\x1b[A\\rforged"


def test_streams_come_back_as_they_were() -> None:
    before = sys.stdout, sys.stderr
    with plain_streams():
        assert not hasattr(sys.stdout, "buffer")  # nothing goes past it
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before


def test_a_name_with_brackets_is_a_name() -> None:
    with bars(named()) as drawn:
        drawn.add_task("[/closed] [link=x]y")


def test_the_page_on_security_names_what_there_is() -> None:
    root = Path(__file__).parent.parent
    page, readme = ((root / name).read_text(encoding="utf-8") for name in ("SECURITY.md", "README.md"))
    assert "(SECURITY.md)" in readme
    assert "`dalle_2.terminal.shown`" in page
    for option in ("--follow-links", "--no-metadata", "--json"):
        assert option in page
    targets = re.findall(r"\]\((\w+\.md)\)", page)
    assert all((root / target).is_file() for target in targets)
    assert '"/SECURITY.md"' in (root / "pyproject.toml").read_text(encoding="utf-8")
