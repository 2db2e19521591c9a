"""A picture under its name is whole: on a full disk, after signals, on file systems without links."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_2 import paths
from dalle_2.cli.main import main
from dalle_2.data.caption_tokens import caption_tokens
from dalle_2.data.shapes import Shapes
from dalle_2.inference.saving import save_new
from dalle_2.metadata import read_metadata
from dalle_2.paths import write_new
from dalle_2.training.log import TrainingLog

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))


@contextmanager
def room(size: int) -> Iterator[None]:
    """Inside, a file of this process may have so many bytes, as on a disk that gets full in the middle of one: the
    system takes a part of what is written, and refuses the rest. Not for longer: a log of the tests is a file, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def no_room(size: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught, room(size):
        yield
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_that_does_not_fit_is_an_error_and_no_file(suffix: str, tmp_path: Path) -> None:
    whole = save_new(NOISE, tmp_path / "whole", "x", suffix, {"seed": 1}).stat().st_size
    for share in (0.0, 0.2, 0.5, 0.9):
        with no_room(int(whole * share)):
            save_new(NOISE, tmp_path / "cut", "x", suffix, {"seed": 1})
        assert not list((tmp_path / "cut").iterdir())
    assert read_metadata(save_new(NOISE, tmp_path / "cut", "x", suffix, {"seed": 1})) == {"seed": 1}


def test_pillow_itself_loses_the_end_of_a_jpeg(tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    NOISE.save(tmp_path / "whole.jpg", quality=95)
    with room((tmp_path / "whole.jpg").stat().st_size // 2):
        NOISE.save(tmp_path / "cut.jpg", quality=95)
    with pytest.raises(OSError, match="truncated"), Image.open(tmp_path / "cut.jpg") as image:
        image.load()


def test_sheets_and_token_tables_that_do_not_fit_are_errors_too(tmp_path: Path) -> None:
    data = Shapes(8, 40)

    def tokens() -> np.ndarray:
        return caption_tokens(data, lambda texts: torch.ones(len(texts), 60), tmp_path, tokenizer_id="t")

    with no_room(4000):  # numpy's own error has no number, and is taken for a fault of the program
        tokens()
    with no_room(4000):
        TrainingLog(tmp_path).picture(1, NOISE)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert np.array_equal(tokens(), np.ones((40, 60), np.int32))
    assert np.load(next(tmp_path.glob("tokens-*.npy"))).dtype == np.int32


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounts a small disk, which only root may")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        fits = save_new(NOISE, tmp_path, "x", "jpg", {})
        refused = 0
        for _ in range(8):
            try:
                save_new(NOISE, tmp_path, "x", "jpg", {})
            except OSError as error:
                assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path / "x.jpg"))
                refused += 1
        assert refused
        assert {path.read_bytes() for path in tmp_path.iterdir()} == {fits.read_bytes()}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Names


def names(folder: Path) -> Iterator[Path]:
    return (folder / f"x{number}" for number in range(10**6))


def without_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_written_over(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", without_links)
    (tmp_path / "x0").write_bytes(b"old")
    (tmp_path / "x1").symlink_to("nowhere")
    assert write_new(b"new", names(tmp_path)) == tmp_path / "x2"
    assert {path.name: path.is_symlink() or path.read_bytes() for path in tmp_path.iterdir()} == {
        "x0": b"old", "x1": True, "x2": b"new",
    }  # fmt: skip


RIVAL = """
import errno, os, sys
from pathlib import Path
from dalle_2.paths import write_new

def without_links(*_):
    raise OSError(errno.EPERM, "")

if sys.argv[3] == "False":
    os.link = without_links
for number in range(60):
    write_new(f"{sys.argv[2]} {number}".encode(), (Path(sys.argv[1]) / f"x{k}" for k in range(10**6)))
"""


@pytest.mark.parametrize("links", [True, False])
def test_rivals_share_the_names(links: bool, tmp_path: Path) -> None:
    arguments = [[sys.executable, "-c", RIVAL, str(tmp_path), rival, str(links)] for rival in "abc"]
    rivals = [subprocess.Popen(each) for each in arguments]
    assert [rival.wait(60) for rival in rivals] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"x{number}" for number in range(180))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 180


def test_windows_renames_to_a_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it refuses one that is taken, as this stand-in does."""

    def rename(source: Path, target: Path) -> None:
        if target.exists():
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(target))
        os.replace(source, target)

    monkeypatch.setattr(paths.os, "link", without_links)
    monkeypatch.setattr(paths.os, "rename", rename)
    monkeypatch.setattr(paths.os, "name", "nt")
    (tmp_path / "x0").touch()
    paths._first_free(tmp_path / "x0", iter([tmp_path / "x0", tmp_path / "x1"]))
    assert [path.name for path in tmp_path.iterdir()] == ["x1"]


def test_no_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x0").touch()
    with pytest.raises(FileExistsError, match="every name is taken"):
        write_new(b"", [tmp_path / "x0"])
    assert len(list(tmp_path.iterdir())) == 1


# Signals


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C, which what runs in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("made_of_it", [None, RuntimeError, ImportError])
def test_the_status_tells_the_signal_whatever_a_library_makes_of_it(
    number: int, status: int, made_of_it: type[Exception] | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def signalled() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException:
            if made_of_it is None:
                raise
            raise made_of_it("initialisation failed") from None

    monkeypatch.setattr("dalle_2.cli.show.show", signalled)
    assert main(["show"]) == status
    assert capsys.readouterr().err == f"dalle2: {'interrupted' if status == 130 else 'terminated'}\n"
    assert signal.getsignal(number) == {signal.SIGINT: signal.default_int_handler}.get(number, signal.SIG_DFL)


def test_an_ignored_interrupt_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell's command in the background has it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr("dalle_2.cli.show.show", lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main(["show"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
