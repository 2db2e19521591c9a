"""Streams that are closed, full or broken off, and more asked for than memory holds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import dalle_2
from dalle_2.cli import run
from dalle_2.cli.main import _verdict, main
from dalle_2.images import save_image

unix = pytest.mark.skipif(os.name == "nt", reason="streams of Unix shells")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(dalle_2.__file__).parents[1])}


def shell(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a shell's command does, in which $0 is this Python and $@ are arguments."""
    return subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


@pytest.fixture
def picture(workdir: Path) -> str:
    save_image(Image.new("RGB", (4, 4)), workdir / "p.png", {"seed": 7})
    return "p.png"


@unix
@pytest.mark.parametrize(
    ("command", "status", "out", "err"),
    [
        ('"$0" -m dalle_2 show "$1"', 0, "p.png\n  seed  7\n", ""),
        ('"$0" -m dalle_2 show "$1" >&-', 0, "", ""),
        ('"$0" -m dalle_2 show "$1" 2>&-', 0, "p.png\n  seed  7\n", ""),
        ('"$0" -m dalle_2 show "$1" <&- >&- 2>&-', 0, "", ""),
        ('"$0" -m dalle_2 show "$1" none.png 2>&-', 1, "", ""),  # and no sentence of errors among the results
        ('"$0" -m dalle_2 show none.png 2>/dev/full', 1, "", ""),
        (
            '"$0" -m dalle_2 show "$1" >/dev/full', 1, "",
            "dalle2: the disk is full while writing the standard output: free some space or write elsewhere\n",
        ),
        ('"$0" -m dalle_2 models download karlo <&-', 1, "", None),
    ],
)  # fmt: skip
def test_closed_and_full_streams(
    command: str, status: int, out: str, err: str | None, picture: str, workdir: Path
) -> None:
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = shell(command, picture)
    assert (done.returncode, done.stdout) == (status, out)
    assert done.stderr == err if err is not None else "nobody can be asked here" in done.stderr


@unix
def test_a_reader_that_went_is_no_error_to_speak_of(picture: str) -> None:
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "dalle_2", "show", picture]
    done = subprocess.run(call, env=ENVIRONMENT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@unix
def test_no_file_gets_the_number_to_which_libraries_complain(workdir: Path) -> None:
    code = (
        "import os, sys; from dalle_2.terminal import plain_streams\n"
        "with plain_streams(): opened = open('a.png', 'wb'); os.write(2, b'a complaint'); opened.close()\n"
        "sys.stdout.write(str(opened.fileno() if not opened.closed else os.path.getsize('a.png')))"
    )
    assert shell('"$0" -c "$1" 2>&-', code).stdout == "0"


# More than can be held


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "red", "--n", "1000000000"], "'--n'"),
        (["generate", "red", "--best-of", "1000000000"], "'--best-of'"),
        (["generate", "red", "--candidates", "1000000000"], "'--candidates'"),
        (["generate", "red", "--size", "1000000000"], "'--size'"),
        (["generate", "red", "--n", "200", "--best-of", "200"], "are 40,000 pictures of a prompt to choose among: ask"),
        (["generate", *["red"] * 101, "--n", "10000"], "101 prompts with 10,000 pictures each are more than 1,000,000"),
        (["variations", "p.png", "--n", "1000000000"], "'--n'"),
        (["interpolate", "p.png", "p.png", "--n", "1000000000"], "'--n'"),
        (["text-diff", "p.png", "--from", "a", "--to", "b", "--n", "1000000000"], "'--n'"),
        (["inpaint", "p.png", "red", "--n", "1000000000"], "'--n'"),
        (["image-to-image", "p.png", "red", "--n", "1000000000"], "'--n'"),
        (["probe", "p.png", "--write", "a", "--labels", "a,b", "--n", "1000000000"], "'--n'"),
        (["outpaint", "p.png", "red", "--right", "1000000000"], "'--right'"),
        (["upscale", "p.png", "--size", "1000000000"], "'--size'"),
        (["evaluate", "--n", "1000000000"], "n must be at most 1,000,000, got 1000000000"),
        (["evaluate", "--candidates", "1000000000"], "'--candidates'"),
    ],
)
def test_more_than_can_be_held_is_refused_before_anything_is_loaded(
    arguments: list[str], words: str, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dalle_2.pipelines.folder.load", None)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:123] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_too_little_memory_is_called_that(error: Exception) -> None:
    sentence, status = _verdict(error)
    assert status == 1
    assert sentence.startswith("there is too little memory, ")
    assert "--low-memory" in sentence


def test_the_best_of_each_prompt_need_no_more_than_one_prompts_pictures(
    micro_pipeline: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dalle_2.inference import rerank

    groups, ranked = [], rerank.reranked

    def spied(pipeline: object, made: list, *arguments: int, **options: int) -> list:
        groups.append([one.prompt for one in made])
        return ranked(pipeline, made, *arguments, **options)

    monkeypatch.setattr(rerank, "reranked", spied)
    call = ["generate", "a red circle", "a blue square", "--best-of", "3", "--n", "2", "--quiet", "--device", "cpu"]
    assert main([*call, "--pipeline", str(micro_pipeline)]) == 0
    assert groups == [["a red circle"] * 6, ["a blue square"] * 6]
    assert len(list((workdir / "generations").iterdir())) == 4


def test_pictures_stay_in_memory_for_a_sheet_alone(
    micro_pipeline: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    close: Callable[[run.Run], None] = run.Run.close

    def closed(self: run.Run) -> None:
        kept.append(len(self.kept))
        close(self)

    monkeypatch.setattr(run.Run, "close", closed)
    monkeypatch.setattr(run, "ON_SHEET", 2)
    call = ["generate", "a red circle", "--n", "3", "--device", "cpu", "--pipeline", str(micro_pipeline), "--quiet"]
    assert main(call) == 0
    assert main([*call, "--grid"]) == 0
    assert kept == [0, 2]


@unix
def test_prompts_without_an_end(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("zero").symlink_to("/dev/zero")
    with open("large.txt", "wb") as file:
        file.truncate(2**26 + 1)
    for name in ("zero", "large.txt"):
        assert main(["generate", "--prompts", name]) == 2
        said = capsys.readouterr().err
        assert f"can't read prompts from {name}: it has more than 67,108,864 bytes: give fewer at once" in said
    assert shell('"$0" -m dalle_2 generate --prompts - </dev/zero').returncode == 2
