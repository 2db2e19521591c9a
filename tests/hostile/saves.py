"""Every way in which something is saved, and what must be there whatever happens on the way.

`python -m hostile.saves '{"names": [...], "stride": 1, "seed": 1}'` tries a fault of every kind at every file operation
of each, in processes that are forked from this one, and says what it found in lines of JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_rig import BATCH, all_finite, noise, prior, trainer

import dalle_2
from dalle_2 import CLIP, CLIPEncoder, DALLe2, Decoder, Tokenizer, save
from dalle_2 import paths as dalle_2_paths
from dalle_2.data.caption_tokens import caption_tokens
from dalle_2.data.embeddings import EmbeddingStore, build_store
from dalle_2.data.shapes import Shapes
from dalle_2.errors import Dalle2Error
from dalle_2.models.checkpoints import load_model, save_model
from dalle_2.paths import atomic_write_text, clear_leftovers
from dalle_2.pipelines.find import find_pipeline
from dalle_2.pipelines.manifest import read_manifest, sha256
from dalle_2.pipelines.seen import note_seen, read_seen
from dalle_2.training import state
from dalle_2.weights import kept as kept_module
from dalle_2.weights.kept import Form, kept
from hostile.faults import KINDS, Disk

SECONDS = 20  # for one try
NOTHING = "nothing"  # what was there before the first save


@dataclass(frozen=True)
class Save:
    """One way of saving.

    before: what is there when it begins. act: saves. read: what is there by the package's own way of reading, as a
    value that can be compared; NOTHING where nothing is. Whatever ends `act`, `read` gives what was there before or
    what `act` leaves, and `act` once more gives the latter, with no temporary file beside it. must: an `act` that
    raises nothing has saved. again: what the next process does, where that isn't `act`.
    """

    before: Callable[[Path], None]
    act: Callable[[Path], None]
    read: Callable[[Path], Any]
    must: bool = True
    again: Callable[[Path], None] | None = None


def digest(model: torch.nn.Module) -> str:
    """Of all weights."""
    import hashlib

    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(name.encode() + value.contiguous().numpy().tobytes())
    return whole.hexdigest()


# A trainer's state


class States:
    """A run that has come one step further than its folder."""

    def __init__(self) -> None:
        self.run: Any = None

    def before(self, folder: Path) -> None:
        self.run = trainer(folder)
        for images in (BATCH, 2 * BATCH):
            self.run.fit(images)
        self.run.train_step(noised(self.run))

    def act(self, folder: Path) -> None:
        self.run.save()

    def again(self, folder: Path) -> None:
        """As another process would, which knows what is in the folder only."""
        run = trainer(folder, ema_halflife=self.run.settings.ema_halflife)
        run.resume()
        if run.images < self.run.images:
            run.train_step(noised(run))
        run.save()

    def read(self, folder: Path) -> Any:
        found = state.load_state(folder)
        assert found is not None
        assert all_finite(found["model"])
        again = trainer(folder, ema_halflife=self.run.settings.ema_halflife)
        assert again.resume()
        return found["images"], digest(again.model)


def noised(run: Any) -> Any:
    from training_rig import Pairs

    return run.model.noised(Pairs().batch(range(BATCH)), torch.Generator().manual_seed(0))


class Anew(States):
    """The first save of a run."""

    def before(self, folder: Path) -> None:
        self.run = trainer(folder, ema_halflife=None)
        self.run.train_step(noised(self.run))

    def read(self, folder: Path) -> Any:
        return super().read(folder) if state.load_state(folder) else NOTHING


# Weights, notes, lists


def weights(suffix: str) -> Save:
    first, second = prior(), prior(width=32)
    name = f"prior{suffix}"
    return Save(
        lambda folder: save_model(first, folder / name),
        lambda folder: save_model(second, folder / name),
        lambda folder: digest(load_model(folder / name)),
    )


NOTE = Save(
    lambda folder: atomic_write_text(folder / "done.json", json.dumps({"settings": {}, "images": 1})),
    lambda folder: atomic_write_text(folder / "done.json", json.dumps({"settings": {}, "images": 2, "x": "y" * 9999})),
    lambda folder: json.loads((folder / "done.json").read_text()),
)
SEEN = Save(
    lambda folder: note_seen(folder, "old", ["a" * 16]),
    lambda folder: note_seen(folder, "new", ["b" * 16, "c" * 16]),
    lambda folder: sorted(read_seen(folder) or []),
)


# Embeddings and tokens


def encode(rows: range) -> tuple[np.ndarray, np.ndarray]:
    values = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None].repeat(4, axis=1)
    return values, -values


def embedded(folder: Path, chunk: int = 4) -> EmbeddingStore:
    return build_store(folder / "store", 10, encode, dim=4, encoder_id="e", data_id="d", chunk=chunk)


def begun(folder: Path) -> None:
    def breaks_off(rows: range) -> Any:
        if rows.start:
            raise KeyboardInterrupt
        return encode(rows)

    with suppress(KeyboardInterrupt):
        build_store(folder / "store", 10, breaks_off, dim=4, encoder_id="e", data_id="d", chunk=4)


def read_store(folder: Path) -> Any:
    """A finished store, or the rows of an unfinished one that count."""
    manifest = folder / "store" / "manifest.json"
    if not manifest.exists() or not json.loads(manifest.read_text())["complete"]:
        return NOTHING
    store = EmbeddingStore(folder / "store")
    store.verify()
    return store.z_img.tolist(), store.z_txt.tolist()


def tokens(folder: Path) -> Any:
    def tokenize(captions: list[str]) -> torch.Tensor:
        return torch.arange(4 * len(captions)).reshape(-1, 4)

    return caption_tokens(Shapes(8, 50), tokenize, folder, tokenizer_id="t")


# A pipeline's folder


def pipelines() -> tuple[DALLe2, DALLe2]:
    """Two of the same form."""
    return pipeline(0), pipeline(1)


def pipeline(seed: int) -> DALLe2:
    from training_rig import clip, decoder

    tokenizer = Tokenizer.train(["a red circle"], 300, 6)
    own = clip(text={"width": 16, "depth": 1, "heads": 2, "vocab_size": 300, "context_length": 6})
    whole: CLIP = own.without_side_tasks().eval()
    parts: list[Any] = [prior(), decoder()]
    for part in (whole, *parts):
        for parameter in part.parameters():
            parameter.data = parameter.data + 0.01 * seed
    assert isinstance(parts[1], Decoder)
    return DALLe2(parts[0], parts[1], CLIPEncoder(whole, tokenizer=tokenizer), device="cpu")


def read_pipeline(folder: Path) -> Any:
    """The digests of all parts, once each is what pipeline.json says, and the whole can be loaded."""
    try:
        place = find_pipeline(folder)
    except Dalle2Error:
        return NOTHING
    manifest = read_manifest(place)
    held = {role: sha256(place / str(part.file)) for role, part in manifest.parts.items()}
    assert held == {role: part.sha256 for role, part in manifest.parts.items()}, "a part isn't the manifest's"
    loaded = dalle_2.load(place, device="cpu")
    assert loaded.prior is not None
    return held


# Copies of changed weights


def source(folder: Path) -> None:
    (folder / "source.bin").write_bytes(b"x")


def keep(folder: Path) -> None:
    value = noise(64, 8)
    source = folder / "source.bin"
    form = Form.of(value, torch.float32)
    found = kept(folder / "kept", "prior-float32", [source], {"w": form}, lambda: [{"w": value}])
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
    # What can't be kept is used as it is.
    assert found is None or torch.equal(found["w"], value), "a copy isn't what it was made of"


def read_kept(folder: Path) -> Any:
    [*found] = (folder / "kept").glob("prior-*.safetensors") if (folder / "kept").exists() else []
    from safetensors.torch import load_file

    return {name: value.sum().item() for path in found for name, value in load_file(path).items()} or NOTHING


def saves() -> dict[str, Save]:
    """All of them by name."""
    states, anew = States(), Anew()
    first, second = pipelines()
    kept_module.LEAST_BYTES = 0
    return {
        "state": Save(states.before, states.act, states.read, again=states.again),
        "first state": Save(anew.before, anew.act, anew.read, again=anew.again),
        "weights": weights(".safetensors"),
        "weights as .pth": weights(".pth"),
        "note": NOTE,
        "seen": SEEN,
        "embeddings": Save(lambda folder: None, lambda folder: close(embedded(folder)), read_store),
        "embeddings gone on with": Save(begun, lambda folder: close(embedded(folder)), read_store),
        "tokens": Save(lambda folder: None, lambda folder: close(tokens(folder)), lambda folder: read_tokens(folder)),
        "first pipeline": Save(lambda folder: None, lambda folder: close(save(first, folder)), read_pipeline),
        "pipeline": Save(lambda f: close(save(first, f)), lambda f: close(save(second, f)), read_pipeline),
        "kept weights": Save(source, keep, read_kept, must=False),
    }


def close(_: object) -> None:
    """Nothing is wanted of it."""


def read_tokens(folder: Path) -> Any:
    return tokens(folder).tolist() if [*folder.glob("tokens-*.sha256")] else NOTHING


def warm(home: Path) -> None:
    """Has all loaded that the tries' processes would load, each for itself."""
    states = States()
    states.before(home)
    states.act(home)
    states.read(home)
    load_model(home / "state.pth")


# Tries


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """What became of a process that did some work: its status, negative for a signal, and what the work gave."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        status, said = 1, ""
        try:
            dalle_2_paths._clear_once.cache_clear()
            said, status = json.dumps(work()), 0
        except BaseException as error:
            said = json.dumps(f"{type(error).__name__}: {error}")
        finally:
            os.write(writer, said.encode()[:60_000])
            os._exit(status)
    os.close(writer)
    timer = threading.Timer(SECONDS, os.kill, (process, signal.SIGALRM))
    timer.start()
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    timer.cancel()
    return status, json.loads(said) if said else None


class Tried:
    """The tries of one save in one folder."""

    def __init__(self, name: str, how: Save, home: Path) -> None:
        self.name, self.how, self.home = name, how, home
        self.folder, self.base = home / "work", home / "base"
        self.folder.mkdir()
        how.before(self.folder)
        shutil.copytree(self.folder, self.base)
        self.old = self._asked(lambda: how.read(self.folder))
        self.operations = len(self._asked(lambda: self._met(Disk(self.folder))))
        self.new = self._asked(lambda: how.read(self.folder))
        assert self.old != self.new, f"{name} saves nothing"

    def _asked(self, work: Callable[[], Any]) -> Any:
        status, said = forked(work)
        assert status == 0, f"{self.name}: {said}"
        return said

    def _met(self, disk: Disk) -> list[str]:
        disk.install()
        self.how.act(self.folder)
        return disk.met

    def problem(self, at: int, kind: str) -> str | None:
        """What went wrong with a fault at one operation, if something did."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.base, self.folder)
        status, said = forked(lambda: self._met(Disk(self.folder, at, kind)) and None)
        if status == -signal.SIGALRM:
            return "it hangs"
        told, after = forked(self._looked_at_and_saved_again)
        then = f"after {ending(status, said)}"
        if told != 0:
            return f"{then} it can't be read or saved again: {after}"
        if after["found"] not in ([self.new] if status == 0 and self.how.must else [self.old, self.new]):
            return f"{then} it is neither what was nor what was to be"
        if after["again"] != self.new:
            return f"{then} and another save it is not what was to be"
        return f"{then} and another save {', '.join(after['left'])} is left" if after["left"] else None

    def _looked_at_and_saved_again(self) -> dict[str, Any]:
        """What the next process does: it reads, saves, and reads again."""
        found = self.how.read(self.folder)
        (self.how.again or self.how.act)(self.folder)
        clear_leftovers(self.folder)  # as the next training does
        left = [str(path.relative_to(self.folder)) for path in self.folder.rglob(".*")]
        return {"found": found, "again": self.how.read(self.folder), "left": left}


def ending(status: int, said: Any) -> str:
    return "a save" if status == 0 else f"a kill ({-status})" if status < 0 else f"{said!r}"


def tries(operations: int, stride: int, chance: random.Random) -> Iterator[tuple[int, str]]:
    """A fault of each kind at every operation, or at every few of them, beginning anywhere."""
    for kind in KINDS:
        for at in range(1 + chance.randrange(stride), operations + 1, stride):
            yield at, kind


def main(arguments: dict[str, Any]) -> None:
    """Says a line of each save, and one of each failure."""
    torch.set_num_threads(1)
    known, chance = saves(), random.Random(arguments["seed"])
    with tempfile.TemporaryDirectory() as home:
        warm(Path(home))
    for name in arguments["names"] or known:
        began, count, home = time.monotonic(), 0, Path(tempfile.mkdtemp(prefix="dalle2-saves-"))
        tried = Tried(name, known[name], home)
        for at, kind in tries(tried.operations, arguments["stride"], chance):
            count += 1
            if (problem := tried.problem(at, kind)) is not None:
                kept_in = Path(arguments["keep"]) / f"{name.replace(' ', '-')}-{kind}-{at}"
                shutil.rmtree(kept_in, ignore_errors=True)
                shutil.copytree(tried.folder, kept_in)
                print(json.dumps({"save": name, "at": at, "kind": kind, "problem": problem, "kept": str(kept_in)}))
        shutil.rmtree(home)
        seconds = time.monotonic() - began
        print(
            json.dumps({"save": name, "operations": tried.operations, "tries": count, "seconds": seconds}), flush=True
        )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
