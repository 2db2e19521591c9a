"""`dalle2 generate` and `dalle2 upscale`: the files they leave, what they say, and their exit status."""

import errno
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import dalle_2
from dalle_2 import DALLe2
from dalle_2.cli.main import main
from dalle_2.errors import UsageError
from dalle_2.inference import saving
from dalle_2.inference.generate import generate
from dalle_2.inference.generation import GenerationSettings
from dalle_2.inference.prompt_doubts import prompt_warnings
from dalle_2.metadata import read_metadata

RED, BLUE = "a red circle", "a blue square"


@pytest.fixture
def run(micro_pipeline: Path, workdir: Path) -> Callable[..., int]:
    """The command line with the micro pipeline, standing in an empty folder."""

    def call(*arguments: str, command: str = "generate") -> int:
        return main([command, "--pipeline", str(micro_pipeline), "--device", "cpu", *arguments])

    return call


def files(folder: str = "generations") -> list[Path]:
    return sorted(path for path in Path(folder).iterdir())


# What is written


def test_pictures_lie_in_generations_under_names_without_prompts(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(RED, BLUE, "--n", "2", "--seed", "40") == 0
    names = [path.name for path in files()]
    assert len(names) == 4
    for k, name in enumerate(names):
        assert re.fullmatch(rf"\d{{8}}-\d{{6}}-00{k}-{40 + k}\.png", name)
    assert {Image.open(path).size for path in files()} == {(32, 32)}
    out, err = capsys.readouterr()
    assert [line.rpartition("  ")[2] for line in out.splitlines()] == [RED, RED, BLUE, BLUE]
    assert "seed 43" in out
    assert f"4 pictures in {Path('generations').resolve()}" in err
    assert "decoder: 3 steps" in err


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_prompt_and_settings_are_read_back(
    run: Callable[..., int], format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--seed 5 --steps 2 --eta 0.25 --guidance 3 --prior-steps 4 --prior-guidance 1.5 --quiet"
    assert run(RED, *options.split(), "--format", format) == 0
    (path,) = files()
    metadata = read_metadata(path)
    assert metadata is not None
    wanted = {
        "prompt": RED, "seed": 5, "pipeline": "micro", "eta": 0.25, "size": "32x32", "dtype": "float32",
        "steps": {"prior": 4, "decoder": 2, "upsampler-32": 2},
        "guidance": {"prior": 1.5, "decoder": 3.0, "upsampler-32": 1.0},
    }  # fmt: skip
    assert metadata == metadata | wanted
    capsys.readouterr()
    assert main(["show", str(path)]) == 0
    assert RED in capsys.readouterr().out


def test_a_picture_made_again_from_its_metadata_is_the_same(run: Callable[..., int]) -> None:
    run(RED, BLUE, "--seed", "5", "--quiet")
    metadata = read_metadata(files()[1])
    assert metadata is not None
    run(metadata["prompt"], "--seed", str(metadata["seed"]), "--out", "again", "--quiet")
    pictures = [Image.open(path).convert("RGB") for path in (files()[1], files("again")[0])]
    first, second = (torch.tensor(list(picture.tobytes())) for picture in pictures)
    assert ((first - second).abs() <= 1).float().mean() >= 0.999


def test_the_command_and_the_library_agree(run: Callable[..., int], micro_pipeline: Path) -> None:
    run(RED, "--seed", "5", "--steps", "2", "--quiet")
    pipeline = dalle_2.load(micro_pipeline, device="cpu")
    (image,) = generate([RED], pipeline, seed=5, settings=GenerationSettings(steps=2))
    assert Image.open(files()[0]).convert("RGB").tobytes() == image.tobytes()


def test_seeds_are_random_unless_given(run: Callable[..., int]) -> None:
    run(RED, "--n", "2", "--quiet")
    run(RED, "--quiet")
    seeds = [int(path.stem.split("-")[3]) for path in files()]
    assert len(set(seeds)) == 3
    assert any(b - a == 1 for a in seeds for b in seeds)


def test_metadata_can_be_left_out(run: Callable[..., int]) -> None:
    run(RED, "--no-metadata", "--grid", "--quiet")
    assert all(not read_metadata(path) for path in files())
    assert all(RED.encode() not in path.read_bytes() for path in files())


def test_nothing_is_ever_written_over(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dalle_2.cli.run.STAMP", "same")
    for _ in range(3):
        run(RED, "--seed", "1", "--quiet")
    assert [path.name for path in files()] == ["same-000-1-02.png", "same-000-1-03.png", "same-000-1.png"]


def test_a_grid_shows_all_pictures(run: Callable[..., int]) -> None:
    run(RED, BLUE, "--seed", "1", "--grid", "--quiet")
    sheet = next(path for path in files() if "grid" in path.name)
    assert len(files()) == 3
    assert Image.open(sheet).width > 64


def test_json_is_one_record_a_picture(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    run(RED, "--n", "2", "--json", "--grid", "--seed", "3")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["seed"] for record in records] == [3, 4]
    assert all(Path(record["file"]).exists() for record in records)


def test_quiet_says_nothing(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    run(RED, "--quiet")
    assert capsys.readouterr() == ("", "")


def test_prompts_from_a_file_and_from_standard_input(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text(f"{RED}\n\n  {BLUE}  \n")
    run("a circle", "--prompts", "prompts.txt", "--json")
    prompts = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert prompts == ["a circle", RED, BLUE]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{BLUE}\n"))
    run("--prompts", "-", "--json")
    assert json.loads(capsys.readouterr().out)["prompt"] == BLUE


# What is said


def test_unknown_words_draw_a_warning_with_known_ones(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a purple circel above a blue zebra", "--quiet") == 0
    warning = capsys.readouterr().err
    assert "this pipeline never saw purple, circel (did you mean circle?), zebra; words it knows: circle" in warning
    assert len(warning.splitlines()) == 1


def test_a_very_long_prompt_is_cut_and_says_so(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ("a red circle " * 1000)[:10_000]
    assert run(prompt, "--format", "jpg", "--quiet") == 0
    assert "is longer than the 46 tokens that are read: its end is cut" in capsys.readouterr().err
    metadata = read_metadata(files()[0])
    assert metadata is not None
    assert metadata["prompt"] == prompt


def test_the_library_warns_too(micro_pipeline: Path) -> None:
    pipeline = dalle_2.load(micro_pipeline, device="cpu")
    assert prompt_warnings(pipeline, [RED]) == []
    pipeline.prior = None
    (doubt,) = prompt_warnings(pipeline, [RED])
    assert "has no prior: captions go to its decoder as they are" in doubt
    pipeline = dalle_2.load(micro_pipeline, device="cpu")
    with pytest.warns(UserWarning, match="never saw zebra"):
        images = generate("a zebra", pipeline, n=2, seed=1)
    assert [image.size for image in images] == [(32, 32)] * 2


def test_on_a_terminal_there_is_a_bar_for_each_stage(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dalle_2.cli import stage_progress

    monkeypatch.setattr(stage_progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert run(RED, "--steps", "2") == 0
    shown = capsys.readouterr().err
    assert all(stage in shown for stage in ("prior", "decoder", "upsampler-32"))
    assert shown.count("2/2") >= 3


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([""], 2, "the prompt is empty"),
        ([RED, "   "], 2, "prompt 2 of 2 is empty"),
        ([], 2, "there is no prompt"),
        (["x" * 10_001], 2, "10,001 characters"),
        ([RED, "--steps", "0"], 2, "steps"),
        ([RED, "--steps", "-1"], 2, "steps"),
        ([RED, "--steps", "2000"], 2, "steps must be a whole number from 1 to 1000"),
        ([RED, "--eta", "1"], 2, "eta must be at least 0 and below 1, got 1.0"),
        ([RED, "--eta", "-0.5"], 2, "got -0.5"),
        ([RED, "--guidance", "-1"], 2, "guidance"),
        ([RED, "--n", "0"], 2, "--n"),
        ([RED, "--format", "gif"], 2, "gif"),
        ([RED, "--device", "tpu"], 2, "no device is called 'tpu'"),
        ([RED, "--dtype", "int4"], 2, "dtype must be auto"),
        ([RED, "--pipeline", "nonesuch"], 2, "there is no pipeline 'nonesuch'"),
        ([RED, "--out", "picture.png"], 2, "names a file"),
        ([RED, "--out", "truncated/pipeline.json/there"], 2, "pipeline.json is a file"),
        ([RED, "--negative", " "], 2, "the negative prompt is empty: write one, or leave it out"),
        (["--prompts", "missing.txt"], 2, "can't read prompts from missing.txt"),
        ([RED, "--pipeline", "empty"], 1, "empty is no pipeline folder"),
        ([RED, "--pipeline", "truncated"], 1, "decoder.safetensors is not the file"),
        ([RED, "--pipeline", "lacking"], 1, "prior.safetensors is missing"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_status(
    run: Callable[..., int], micro_pipeline: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], status: int, message: str,
) -> None:  # fmt: skip
    Path("empty").mkdir()
    for name in ("truncated", "lacking"):
        shutil.copytree(micro_pipeline, name)
    Path("truncated/decoder.safetensors").write_bytes(b"half")
    Path("lacking/prior.safetensors").unlink()
    assert run(*arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("generations").exists() or files() == []


def test_a_folder_that_takes_nothing_is_refused_before_anything_is_drawn(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving.os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(UsageError, match=f"nothing may be written into {workdir}: name another"):
        saving.folder_name("new/pictures")


def test_debug_shows_the_traceback(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_keeps_what_was_saved(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_new, written = saving.write_new, []

    def filling(data: bytes, names: Iterator[Path]) -> Path:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device", str(next(names)))
        written.append(write_new(data, names))
        return written[-1]

    monkeypatch.setattr(saving, "write_new", filling)
    assert run(RED, "--n", "3", "--seed", "1") == 1
    assert files() == written
    assert Image.open(written[0]).size == (32, 32)
    err = capsys.readouterr().err
    assert "the disk is full while writing" in err
    assert "1 picture finished before" in err


def test_an_interruption_keeps_the_finished_pictures(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_batch, calls = DALLe2.generate, []

    def interrupted(self: DALLe2, *arguments: object, **options: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate_batch(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(DALLe2, "generate", interrupted)
    assert run(RED, "--n", "6") == 130
    assert len(files()) == 4  # the first micro-batch
    assert "4 pictures finished before" in capsys.readouterr().err


def test_mistakes_are_found_without_loading_torch(workdir: Path) -> None:
    code = (
        "import sys; from dalle_2.cli.main import main; "
        "assert main(['generate', '']) == 2; assert main(['generate', '--help']) == 0; "
        "assert main(['upscale', '--help']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Upscaling


def test_upscale_takes_any_picture(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (50, 30), (200, 30, 30)).save("wide.png")
    Image.new("L", (16, 16), 128).save("grey.jpg")
    assert run("wide.png", "grey.jpg", "--seed", "3", "--out", "large", command="upscale") == 0
    assert [path.name for path in files("large")] == ["grey-32px.png", "wide-32px.png"]
    assert {Image.open(path).size for path in files("large")} == {(32, 32)}
    err = capsys.readouterr().err
    assert "wide.png is 50 x 30: cropped and resized to 16 x 16 first" in err
    assert "grey.jpg is" not in err
    metadata = read_metadata("large/grey-32px.png")
    assert metadata is not None
    assert metadata["seed"] == 4
    assert metadata["steps"] == {"upsampler-32": 2}
    assert metadata["from"] == "16x16"


def test_upscale_says_what_is_wrong(
    run: Callable[..., int], micro_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("missing.png", command="upscale") == 1
    assert "there is no file missing.png" in capsys.readouterr().err
    loaded = dalle_2.load(micro_pipeline, device="cpu")
    loaded.upsamplers = ()
    dalle_2.save(loaded, "bare")
    Image.new("RGB", (16, 16)).save("a.png")
    assert run("a.png", "--pipeline", "bare", command="upscale") == 2
    assert "pipeline bare has no upsampler" in capsys.readouterr().err
