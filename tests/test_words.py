"""Words on their way in and out: encodings of files and consoles, the home folder, paths in suggested commands."""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image

import dalle_2
from dalle_2.cli.home import knowing_home
from dalle_2.cli.main import COMMANDS, _alone, _load, main
from dalle_2.config import read_toml
from dalle_2.data.dataset import load_dataset
from dalle_2.errors import ConfigError, UsageError
from dalle_2.models.clip_loading import load_clip
from dalle_2.paths import at_home, quoted
from dalle_2.pipelines.manifest import read_manifest
from dalle_2.plain_text import NotText, decoded, lines_of
from dalle_2.presets import resolve
from dalle_2.text.prompt_files import prompts_from
from dalle_2.text.prompts import check_prompts

RED, BLUE = "a red circle", "a blue square"
FOREIGN = "café – 円 😀"


@pytest.fixture
def run(micro_pipeline: Path, workdir: Path) -> Callable[..., int]:
    """A command with the micro pipeline, standing in an empty folder."""

    def call(command: str, *arguments: str) -> int:
        return main([command, *arguments, "--pipeline", str(micro_pipeline), "--device", "cpu"])

    return call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's home, which is not where they stand."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


# Prompts from files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_prompts_file_says_the_same_in_every_unicode(encoding: str, end: str, workdir: Path) -> None:
    Path("prompts.txt").write_bytes(end.join([RED, "", f"  {FOREIGN} ", ""]).encode(encoding))
    assert prompts_from("prompts.txt") == [RED, FOREIGN]


def test_both_orders_of_utf_16_have_their_mark() -> None:
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        assert decoded(mark + FOREIGN.encode(encoding)) == FOREIGN


def test_marks_inside_go_and_rare_separators_stay() -> None:
    joined = decoded(f"{RED}\n".encode("utf-8-sig") + f"{BLUE}\u2028below\n".encode("utf-8-sig"))
    assert lines_of(joined) == [RED, f"{BLUE}\u2028below", ""]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{RED}\ncaf\xe9\n".encode("cp1252"), "can't read prompts from p.txt: line 2 is not UTF-8: save it as UTF-8"),
        (RED.encode("utf-16-le"), "can't read prompts from p.txt: it holds zero bytes, as UTF-16 without its mark"),
        (b"\xff\xfea", "can't read prompts from p.txt: line 1 is not UTF-16-LE: save it"),
        ("\ufeff\n \n# only a comment\n".encode(), "p.txt holds no prompt: write one a line"),
    ],
)
def test_what_is_no_text_is_one_sentence(content: bytes, words: str, workdir: Path) -> None:
    Path("p.txt").write_bytes(content)
    with pytest.raises(UsageError) as refused:
        prompts_from("p.txt")
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


def test_lines_may_be_comments(workdir: Path) -> None:
    Path("p.txt").write_text(f"# shapes\n{RED}  # kept\n  # another\n\\#1 circle\n\\{BLUE}\n")
    assert prompts_from("p.txt") == [f"{RED}  # kept", "#1 circle", f"\\{BLUE}"]


@pytest.mark.parametrize(
    ("content", "encoding"),
    [(FOREIGN.encode("utf-8-sig"), "cp1252"), (FOREIGN.encode("utf-16"), "ascii"), ("café".encode("cp1252"), "cp1252")],
)
def test_standard_input_is_read_by_its_bytes(content: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content + b""), encoding=encoding))
    assert prompts_from("-") == [FOREIGN if content != b"caf\xe9" else "café"]


def test_standard_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    with pytest.raises(UsageError, match="from standard input: line 1 is not UTF-8: save it as UTF-8"):
        prompts_from("-")


def test_a_mark_that_came_with_an_argument_goes() -> None:
    assert check_prompts(["\ufeffa red circle", BLUE]) == [RED, BLUE]
    assert check_prompts("\ufeffa red circle") == [RED]
    with pytest.raises(UsageError, match="the prompt is empty"):
        check_prompts("\ufeff")


def test_a_mark_changes_no_picture(run: Callable[..., int]) -> None:
    for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        Path(f"{name}.txt").write_text(f"{RED}\n", encoding=encoding)
        assert run("generate", "--prompts", f"{name}.txt", "--seed", "5", "--out", name, "--quiet") == 0
    plain, marked = (Image.open(next(Path(name).iterdir())) for name in ("plain", "marked"))
    assert plain.tobytes() == marked.tobytes()


# Settings from files


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_may_begin_with_a_mark(encoding: str, workdir: Path) -> None:
    Path("my.toml").write_text('preset = "shapes-micro"\r\nname = "Müller"\r\n', encoding=encoding, newline="")
    assert resolve(["my.toml"]).name == "Müller"


def test_settings_that_are_no_text_are_one_sentence(workdir: Path) -> None:
    Path("my.toml").write_bytes('name = "M\xfcller"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"my\.toml is not a TOML file: line 1 is not UTF-8: save it as UTF-8"):
        read_toml("my.toml")
    with pytest.raises(NotText, match="zero bytes"):
        decoded(b"\0")


def test_a_manifest_may_begin_with_a_mark(micro_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_bytes(b"\xef\xbb\xbf" + (micro_pipeline / "pipeline.json").read_bytes())
    assert read_manifest(tmp_path) == read_manifest(micro_pipeline)


# What a console can't show


class Console:
    """Both standard streams, of some encoding, as Python opens them for a console or a pipe."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoding = encoding
        self.out, self.err = io.BytesIO(), io.BytesIO()
        for name, stream in (("stdout", self.out), ("stderr", self.err)):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, line_buffering=True))

    def said(self) -> str:
        sys.stdout.flush()
        return self.out.getvalue().decode(self.encoding, "surrogateescape")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_no_console_ends_a_run(encoding: str, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(encoding, monkeypatch)
    assert run("generate", FOREIGN, f"{FOREIGN} again", "--seed", "1") == 0
    pictures = sorted(map(str, Path("generations").iterdir()))
    assert len(pictures) == 2
    assert main(["show", *pictures]) == 0
    assert [line.split("  ")[0] for line in console.said().splitlines()[:2]] == pictures
    assert "again" in console.said()


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_json_stays_json(encoding: str, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(encoding, monkeypatch)
    assert run("generate", FOREIGN, RED, "--out", "Bücher", "--json") == 0
    made = [json.loads(line) for line in console.said().splitlines()]
    assert [record["prompt"] for record in made] == [FOREIGN, RED]
    assert main(["show", "--json", *(record["file"] for record in made)]) == 0
    assert run("rerank", FOREIGN, *(record["file"] for record in made), "--json") == 0
    records = [json.loads(line) for line in console.said().splitlines()]
    assert [record["prompt"] for record in records[2:4]] == [FOREIGN, RED]
    assert {record["file"] for record in records[4:]} == {record["file"] for record in made}
    assert ("\\u" in console.said()) == (encoding != "utf-8")


def test_bars_are_drawn_where_their_blocks_are_unknown(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console("cp1252", monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("generate", FOREIGN, "--steps", "2") == 0
    sys.stderr.flush()
    assert "upsampler-32" in console.err.getvalue().decode("cp1252")


def test_a_name_that_is_no_text_is_said_too(workdir: Path) -> None:
    """In a process of its own: only there is a name of other bytes an argument."""
    name = b"caf\xe9.png"
    made = subprocess.run(
        [sys.executable, "-m", "dalle_2", "show", name], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(Path(dalle_2.__file__).parents[1])},
    )  # fmt: skip
    assert made.returncode == 1
    assert b"there is no file caf" in made.stderr
    assert made.stderr.count(b"\n") == 1


# The home folder


def test_every_path_of_every_command_knows_home(home: Path) -> None:
    def named(first: Path, many: list[Path], maybe: Path | None = None, word: str = "") -> None:
        got.append((first, many, maybe, word))

    got: list[tuple] = []
    app = knowing_home(_alone("named", named))
    arguments = ["~/a", "~/b", "c", "--maybe=~/d", "--word=~/e"]
    typer.main.get_command(app).main(arguments, "dalle2", standalone_mode=False)
    assert got == [(home / "a", [home / "b", Path("c")], home / "d", "~/e")]
    for name in COMMANDS:
        assert _load(name).help  # each still reads its options


def test_pictures_go_home(run: Callable[..., int], home: Path) -> None:
    assert run("generate", RED, "--out=~/pictures", "--grid", "--quiet") == 0
    assert len(list((home / "pictures").iterdir())) == 2
    (home / "p.txt").write_text(RED)
    assert run("generate", "--prompts=~/p.txt", "--out=~/more", "--quiet") == 0
    (picture,) = (home / "more").iterdir()
    assert run("upscale", f"~/more/{picture.name}", "--out=~/large", "--quiet") == 0
    assert main(["show", f"~/more/{picture.name}"]) == 0
    ends = [f"~/more/{picture.name}"] * 2
    assert run("interpolate", *ends, "--n", "2", "--out=~/between", "--steps", "2", "--quiet") == 0
    assert len(list((home / "between").iterdir())) == 2
    assert not Path("~").exists()


def test_settings_know_home(home: Path, workdir: Path, micro_pipeline: Path) -> None:
    (home / "my.toml").write_text('preset = "shapes-micro"\n[data]\nsource = "~/pictures"\n')
    assert resolve(["~/my.toml"]).data.source == "~/pictures"
    (home / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(home / "pictures" / "a.png")
    (home / "pictures" / "a.txt").write_text(RED)
    assert len(load_dataset("~/pictures")) == 1
    assert resolve([], data="~").name == "home"
    (home / "clip").symlink_to(micro_pipeline)
    assert load_clip("~/clip").model.config.embed_dim == 16


def test_what_only_looks_like_home_stays(workdir: Path) -> None:
    assert at_home("~nobody-of-this-name.png") == Path("~nobody-of-this-name.png")
    assert at_home("a/~/b") == Path("a/~/b")
    Image.new("RGB", (8, 8)).save("~draft.png")
    assert main(["show", "~draft.png"]) == 1  # it was found, and says nothing of its making


# Suggested commands


def test_paths_are_quoted_for_the_shell_they_go_to() -> None:
    assert quoted("trained_models/plain") == "trained_models/plain"
    for name in ("my folder", "it's", "a;b", "$HOME"):
        assert shlex.split(f"dalle2 --pipeline {quoted(name, 'posix')} end") == ["dalle2", "--pipeline", name, "end"]
    assert quoted(r"C:\runs\one", "nt") == r"C:\runs\one"
    assert quoted(r"C:\my runs\one & two", "nt") == r'"C:\my runs\one & two"'
