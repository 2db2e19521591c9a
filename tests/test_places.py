"""Folders for results, looked at before anything is drawn; and names that are as long as they may be."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dalle_2.cli.main import main
from dalle_2.errors import UsageError
from dalle_2.images import save_image
from dalle_2.paths import is_address, shortened
from dalle_2.pipelines.convert import convert
from dalle_2.pipelines.folder import load, save
from dalle_2.place import require_place, tempfile
from dalle_2.training.remote import Mirror

LONG = "n" * 300


def looped() -> str:
    Path("loop").symlink_to("loop")
    return "loop"


def below_a_loop() -> str:
    return f"{looped()}/pictures"


def dangling() -> str:
    Path("link").symlink_to("nothing")
    return "link"


def file() -> str:
    Path("words").write_text("")
    return "words"


PLACES: dict[str, tuple[Callable[[], str], str]] = {
    "an address": (lambda: "s3://bucket/pictures", "s3:/bucket/pictures is no folder on this machine but the address"),
    "an address of a file": (lambda: "file:///tmp/x", "is no folder on this machine but the address"),
    "a loop": (looped, "loop can't be a folder for the results ("),
    "below a loop": (below_a_loop, "loop/pictures can't be a folder for the results ("),
    "a link to nothing": (dangling, "link is a link that leads to no folder"),
    "a file": (file, "words"),
    "a long name": (lambda: LONG, "can't be a folder for the results (File name too long): name another one"),
    "a long path": (lambda: "/".join(["n" * 200] * 30), "can't be a folder for the results (File name too long)"),
    "a place of the system's": (lambda: "/proc/pictures", "nothing can be written into /proc ("),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_can_not_be_a_folder_is_refused_before_work(
    place: str, micro_pipeline: Path, workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "/proc" in PLACES[place][1] and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    made, words = PLACES[place]
    out = made()
    before = sorted(workdir.iterdir())

    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded to be drawn with")

    monkeypatch.setattr("dalle_2.pipelines.folder.load", drawn)
    picture = str(micro_pipeline / "none.png")
    for call in (["generate", "a red circle"], ["upscale", picture], ["variations", picture], ["evaluate"]):
        pipeline = [] if call == ["evaluate"] else ["--pipeline", str(micro_pipeline)]
        assert main([*call, "--out", out, *pipeline]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert main(["train", "shapes-micro", "--out", out]) == 2
    assert main(["models", "convert", str(micro_pipeline), out]) == 2
    assert sorted(workdir.iterdir()) == before
    with pytest.raises(UsageError):
        require_place(out)


def test_a_place_that_will_do_is_left_as_it_was(workdir: Path) -> None:
    assert require_place("new/pictures") == Path("new/pictures")
    assert require_place("c:") == Path("c:")
    assert require_place("..") == Path("..")
    assert not list(workdir.iterdir())
    (workdir / "real").mkdir()
    (workdir / "link").symlink_to("real")
    assert require_place("link/below") == Path("link/below")
    with pytest.raises(UsageError, match="zero|null byte"):
        require_place("a\0b")


def test_a_disk_that_takes_no_folder(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(UsageError, match=r"nothing can be written into .* \(No space left on device\): name another"):
        require_place("new")


def test_pipelines_go_to_folders_too(micro_pipeline: Path, workdir: Path) -> None:
    with pytest.raises(UsageError, match="is no folder on this machine"):
        save(load(micro_pipeline, device="cpu"), "s3://bucket/pipeline")
    with pytest.raises(UsageError, match="is no folder on this machine"):
        convert(str(micro_pipeline), Path("s3://bucket/pipeline"))
    with pytest.raises(UsageError, match="s3:/bucket/run was an address before it became a Path: give save_dir as"):
        Mirror.of(Path("s3://bucket/run"), is_aws=False)
    assert not list(workdir.iterdir())


def test_addresses_and_paths_are_told_apart() -> None:
    assert all(map(is_address, ("s3://b/x", "gs:/b", Path("memory://x"), "file:///x")))
    assert not any(map(is_address, ("C:/pictures", "c:\\pictures", "a/b:/c", "./s3:/x", "10:30")))


def test_names_of_many_bytes_fit(micro_pipeline: Path, workdir: Path) -> None:
    assert shortened("a" * 300) == "a" * 100
    assert shortened("😀" * 62, 10) == "😀" * 2
    name = f"{'😀' * 62}.png"  # 252 bytes, where 255 are allowed
    save_image(Image.new("RGB", (16, 16)), name, {"seed": 1})
    call = ["upscale", name, "--pipeline", str(micro_pipeline), "--device", "cpu", "--quiet"]
    assert main(call) == 0
    assert len(list((workdir / "generations").iterdir())) == 1
