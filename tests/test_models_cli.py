"""`dalle2 models`: what is listed, fetched from a hub that fails, asked about for its licence, and converted."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import karlo_rig
import pytest
import torch
from fake_hub import COMMIT, FakeHub
from PIL import Image
from safetensors.torch import load_file

import dalle_2
from dalle_2 import CLIPEncoder, hub
from dalle_2.cached import cached
from dalle_2.cli import consent
from dalle_2.cli.main import main
from dalle_2.errors import HubError, UsageError
from dalle_2.inference.generate import generate
from dalle_2.paths import hub_cache
from dalle_2.pipelines.find import check_draws, find_pipeline
from dalle_2.pipelines.manifest import read_manifest
from dalle_2.published import PUBLISHED

KARLO, VARIATIONS = "kakaobrain/karlo-v1-alpha", "kakaobrain/karlo-v1-alpha-image-variations"
WEIGHTS = "prior/diffusion_pytorch_model.safetensors"
# Made-up bytes under the names that there are: fetching doesn't look into files.
FILES = {
    "model_index.json": b'{"_class_name": "UnCLIPPipeline"}',
    "README.md": b"# Karlo",
    "prior/config.json": b'{"num_layers": 2}',
    WEIGHTS: bytes(range(256)) * 2000,
    "decoder/config.json": b"{}",
    "decoder/diffusion_pytorch_model.safetensors": b"decoder" * 5000,
}
UNREAD = {
    "prior/diffusion_pytorch_model.bin": b"the same once more",
    "decoder/diffusion_pytorch_model.fp16.safetensors": b"and again",
    "picture.png": b"",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache, and a memory of licences, of this test alone."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has Karlo's names, and a network."""
    from huggingface_hub import constants

    with fake_hub.served() as served:
        served.repos |= {KARLO: FILES | UNREAD, VARIATIONS: FILES}
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("{")[2]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{served.url}/{{{template}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what a cut loses at most
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # which the client does between its attempts
        yield served


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a failure."""
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dalle2:")]
    assert len(err) == 1
    return err[0]


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Where everything is, as the list says."""
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["name"]: row["state"] for row in rows}


def accepted() -> None:
    hub.accept(PUBLISHED[0])


# The list


def test_the_list_names_everything_that_a_name_stands_for(
    micro_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dalle_2.save(dalle_2.load(micro_pipeline), tmp_path / "trained_models" / "mine")
    (tmp_path / "trained_models" / "broken").mkdir()
    (tmp_path / "trained_models" / "broken" / "pipeline.json").write_text("{")
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {"shapes-tiny", "mine", "broken", "karlo", "karlo-variations", "karlo-original"} <= rows.keys()
    assert {row.name for row in PUBLISHED} <= rows.keys()
    assert rows["mine"]["does"] == "text to picture at 32 pixels, and edits, by clip, prior, decoder, upsampler-32"
    assert rows["mine"]["gigabytes"] < 0.01
    assert "can't be read as JSON" in rows["broken"]["does"]
    assert rows["shapes-tiny"]["licence"] == "Apache-2.0"
    assert rows["karlo"] | {"does": ""} == {
        "name": "karlo", "does": "", "licence": "CreativeML Open RAIL-M", "gigabytes": 13.7, "state": "not here",
        "where": f"https://huggingface.co/{KARLO}",
    }  # fmt: skip

    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in rows)
    assert "13.7 GB  CreativeML Open RAIL-M  not here" in out
    assert "610 MB  MIT" in out


def test_names_and_hub_ids_mean_one_thing_each() -> None:
    names = [row.name for row in PUBLISHED]
    repos = [row.repo for row in PUBLISHED if row.repo]
    assert len({*names, *repos}) == len(names) + len(repos)


def test_listing_and_fetching_load_no_torch() -> None:
    for call in (["models"], ["models", "download", "someone/something"]):
        code = (
            f"import sys; from dalle_2.cli.main import main; main({call!r});"
            "print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "set()"


# What is fetched


def test_one_form_of_the_weights_is_enough() -> None:
    assert hub.needed([*FILES, *UNREAD]) == sorted(FILES)
    mixed = ["a/model.safetensors", "a/pytorch_model.bin", "b/pytorch_model.bin", "b/config.json", "c/x.ckpt"]
    assert hub.needed(mixed) == ["a/model.safetensors", "b/config.json", "b/pytorch_model.bin"]
    clip = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin", "merges.txt"]
    assert hub.needed([*clip, "model.safetensors"]) == ["merges.txt", "model.safetensors"]
    assert hub.needed(["../away.json", "/etc/away.json", "a/../../away.txt", "config.json"]) == ["config.json"]


def test_fetched_once_and_offline_from_then_on(
    online: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    assert main(["models", "download", "karlo", "--accept-licence"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES.keys()
    assert all((folder / name).read_bytes() == content for name, content in FILES.items())
    assert {name for name, _ in online.asked} == FILES.keys()
    assert states(capsys)["karlo"] == "here"

    online.asked.clear()
    assert main(["models", "download", KARLO]) == 0
    assert online.asked == []

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_pipeline("karlo") == folder
    assert snapshot_download(KARLO, local_files_only=True, cache_dir=hub_cache()) == str(folder)  # others find it too
    capsys.readouterr()
    assert main(["models", "download", "karlo"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)


def test_a_cut_download_goes_on_where_it_stopped(online: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    accepted()
    online.cut[WEIGHTS] = 300_000
    assert main(["models", "download", "karlo"]) == 1
    assert "run the same command again, which goes on from there" in said(capsys)
    assert cached(KARLO) is None
    assert states(capsys)["karlo"] == "here in part"

    online.mend()
    assert main(["models", "download", "karlo"]) == 0
    assert online.asked == [(WEIGHTS, "bytes=300000-")]
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, "prior/config.json"])
def test_a_damaged_file_is_refused(online: FakeHub, capsys: pytest.CaptureFixture[str], name: str) -> None:
    accepted()
    online.corrupt.add(name)
    assert main(["models", "download", "karlo"]) == 1
    assert f"{name} of {KARLO} came damaged: its checksum is not the one that the hub states" in said(capsys)
    assert cached(KARLO) is None
    assert not list(hub_cache().rglob("*.incomplete"))
    assert not list(hub_cache().rglob(name))

    online.mend()
    assert main(["models", "download", "karlo"]) == 0
    assert (cached(KARLO) / name).read_bytes() == FILES[name]  # type: ignore[operator]


def test_a_broken_rest_of_an_earlier_download_does_not_stay(online: FakeHub) -> None:
    accepted()
    (entry,) = (entry for entry in online.listed(KARLO)["siblings"] if entry["rfilename"] == WEIGHTS)
    part = hub_cache() / "models--kakaobrain--karlo-v1-alpha" / "blobs" / f"{entry['lfs']['sha256']}.incomplete"
    part.parent.mkdir(parents=True)
    for rest in (b"x" * 1000, b"x" * len(FILES[WEIGHTS])):
        part.write_bytes(rest)
        with pytest.raises(HubError, match="came damaged"):
            hub.fetch(KARLO)
        assert not part.exists()
    part.write_bytes(b"x" * (len(FILES[WEIGHTS]) + 1))
    assert (hub.fetch(KARLO) / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk(online: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    accepted()
    (entry,) = (entry for entry in online.listed(KARLO)["siblings"] if entry["rfilename"] == WEIGHTS)
    part = hub_cache() / "models--kakaobrain--karlo-v1-alpha" / "blobs" / f"{entry['lfs']['sha256']}.incomplete"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    assert main(["models", "download", "karlo"]) == 1
    assert f"the disk of the hub cache {hub_cache()} filled up while {KARLO} was fetched: make room" in said(capsys)
    assert states(capsys)["karlo"] == "here in part"
    part.unlink()
    assert main(["models", "download", "karlo"]) == 0


def test_too_little_room_is_seen_before_anything_is_fetched(
    online: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted()
    listed = online.listed(KARLO)
    for entry in listed["siblings"]:
        if "lfs" in entry:
            entry["lfs"]["size"] = 10**18
    online.listed = lambda repo: listed  # type: ignore[method-assign]
    assert main(["models", "download", "karlo"]) == 1
    assert f"{KARLO} takes 2000000000.00 GB more, and the disk of the hub cache {hub_cache()} has" in said(capsys)
    assert online.asked == []


def test_what_the_hub_does_not_have(online: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "download", "someone/nothing"]) == 1
    assert "someone/nothing isn't in the hub cache" in (sentence := said(capsys))
    assert "the hub has no such model, or a private one: check the name" in sentence
    assert main(["generate", "x", "--pipeline", "someone/nothing"]) == 1
    assert "the hub has no such model" in said(capsys)
    assert not hub_cache().exists()


def test_no_network(online: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    accepted()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert main(["models", "download", "karlo"]) == 1
    assert "it could not be fetched from the hub (" in (sentence := said(capsys))
    assert "check the network" in sentence
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["models", "download", "karlo"]) == 1
    assert "HF_HUB_OFFLINE is set: fetch it where there is a network" in said(capsys)


def test_a_cache_that_others_left_half_filled_is_not_taken_for_whole(online: FakeHub) -> None:
    accepted()
    folder = hub_cache() / "models--kakaobrain--karlo-v1-alpha" / "snapshots" / COMMIT
    (folder / "prior").mkdir(parents=True)
    (folder / "prior" / "config.json").write_bytes(FILES["prior/config.json"])
    (folder / WEIGHTS).symlink_to("nowhere")
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(COMMIT)
    assert cached(KARLO) is None
    assert find_pipeline("karlo") == folder
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("lacking", ["decoder", "scheduler"])
def test_a_part_that_an_index_names_is_fetched_too(online: FakeHub, lacking: str) -> None:
    parts = {name: ["diffusers", "Class"] for name in ("prior", "decoder", "scheduler")}
    index = {"_class_name": "UnCLIPPipeline", **parts, "safety_checker": [None, None]}
    online.repos[KARLO] = FILES | {
        "model_index.json": json.dumps(index).encode(), "scheduler/scheduler_config.json": b"{}",
    }  # fmt: skip
    accepted()
    folder = find_pipeline("karlo")
    shutil.rmtree(folder / lacking)  # as another program leaves it that was interrupted
    assert cached(KARLO) is None
    assert find_pipeline("karlo") == folder
    assert (folder / lacking).is_dir()
    (folder / WEIGHTS).rename((folder / WEIGHTS).with_suffix(".msgpack"))  # a form that is not read
    assert cached(KARLO) is None
    shutil.rmtree(folder)
    folder.mkdir()
    assert cached(KARLO) is None


def test_a_list_without_sums_is_refused(online: FakeHub) -> None:
    listed = online.listed(KARLO)
    listed["siblings"] = [{"rfilename": "config.json"}]
    online.listed = lambda repo: listed  # type: ignore[method-assign]
    accepted()
    with pytest.raises(HubError, match="states no commit, or no sums"):
        hub.fetch(KARLO)


def test_wrong_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, sentence in {
        "karl": "there are no weights 'karl' to fetch: did you mean karlo?",
        "zzz": "there are no weights 'zzz' to fetch: there are karlo, karlo-variations,",
        "shapes-tiny": "shapes-tiny is here already: ",
        "karlo-original": "karlo-original lies on no hub: https://github.com/kakaobrain/karlo tells where its",
    }.items():
        assert main(["models", "download", name]) == 2
        assert sentence in said(capsys)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("kandinsky-2.1-prior", "(captions to image embeddings of CLIP ViT-L/14, those of Karlo's decoder, by embed()"),
        ("kandinsky-community/kandinsky-2-2-prior", "ViT-bigG/14, by embed() in Python) makes no pictures by itself:"),
        ("clip-vit-l-14", "(OpenAI's encoder of texts and pictures that Karlo's own files need) makes no pictures by"),
        ("openai/clip-vit-large-patch14", "clip-vit-l-14 (OpenAI's encoder"),
        ("dall-e-dvae", "by load_dvae() in Python) makes no pictures by itself: name a pipeline that does, such as"),
        ("glide", "glide lies on no hub: https://github.com/openai/glide-text2im tells where its files are; give the"),
    ],
)  # fmt: skip
def test_what_makes_no_pictures_is_not_fetched_for_them(
    online: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    online.repos |= {row.repo: FILES for row in PUBLISHED if row.repo}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for call in (["generate", "a fox"], ["variations", "a.png"], ["upscale", "a.png"], ["evaluate"]):
        assert main([*call, "--pipeline", name]) == 2
        assert sentence in said(capsys)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        generate("a fox", name)
    assert online.asked == []
    assert not hub_cache().exists()


def test_a_folder_or_a_pipeline_of_that_name_is_meant_first(
    online: FakeHub, micro_pipeline: Path, tmp_path: Path
) -> None:
    for name in ("glide", "openai/clip-vit-large-patch14", "trained_models/kandinsky-2.1-prior"):
        shutil.copytree(micro_pipeline, tmp_path / name)
        check_draws(name.removeprefix("trained_models/"))
        assert find_pipeline(name).resolve() == tmp_path / name


def test_captions_are_embedded_by_what_draws_no_pictures(online: FakeHub) -> None:
    online.repos["kandinsky-community/kandinsky-2-1-prior"] = FILES
    assert (find_pipeline("kandinsky-2.1-prior") / WEIGHTS).is_file()


def test_a_clip_is_fetched_the_same_way(online: FakeHub, micro_pipeline: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from test_clip_encoding import hub_layout

    (tmp_path / "clip").mkdir()
    hub_layout(tmp_path / "clip")
    online.add("someone/tiny-clip", tmp_path / "clip")
    fetched, wanted = CLIPEncoder("someone/tiny-clip"), CLIPEncoder(tmp_path / "clip")
    assert torch.equal(fetched.encode_text(["red"]), wanted.encode_text(["red"]))
    online.down = True
    assert CLIPEncoder("someone/tiny-clip").dim == wanted.dim


# Licences


def test_where_nobody_can_answer_a_licence_is_refused_and_the_way_named(
    online: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in (["generate", "x", "--pipeline", "karlo"], ["evaluate", "--pipeline", KARLO, "--data", "p"]):
        assert main(call) == 1
        sentence = said(capsys)
        assert f"{KARLO} is under a licence that must be accepted before a first download" in sentence
        assert "dalle2 models download karlo --accept-licence" in sentence
    with pytest.raises(HubError, match="--accept-licence"):
        dalle_2.load("karlo")
    assert main(["models", "download", "karlo"]) == 1
    assert "--accept-licence" in said(capsys)
    assert online.asked == []
    assert not hub_cache().exists()


def test_a_licence_is_shown_once(online: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "download", "karlo", "--accept-licence"]) == 0
    err = capsys.readouterr().err
    assert "CreativeML Open RAIL-M" in err
    assert "https://github.com/kakaobrain/karlo/blob/main/LICENSE" in err
    assert main(["models", "download", "karlo-variations", "--accept-licence"]) == 0  # under the same
    assert "RAIL" not in capsys.readouterr().err


def test_what_is_remembered_may_be_damaged(online: FakeHub, tmp_path: Path) -> None:
    accepted()
    (remembered,) = (tmp_path / "settings").rglob("*.json")
    remembered.write_text("{")
    assert hub.to_accept(KARLO) is not None
    accepted()
    assert hub.to_accept(KARLO) is None


def test_a_person_is_asked(
    online: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, True]
    asked: list[str] = []

    def confirm(question: str, **_: object) -> bool:
        asked.append(question)
        return answers.pop(0)

    monkeypatch.setattr(consent, "_somebody_watches", lambda: True)
    monkeypatch.setattr(consent.typer, "confirm", confirm)
    assert main(["generate", "x", "--pipeline", "karlo"]) == 1
    assert "the licence of karlo was not accepted: nothing was fetched" in said(capsys)
    assert online.asked == []
    assert main(["models", "download", "karlo"]) == 0
    assert main(["models", "download", "karlo"]) == 0
    assert asked == ["Do you accept it, and fetch 13.7 GB?"] * 2


def test_a_terminal_is_asked(tmp_path: Path) -> None:
    """In a process of its own, whose input and errors are a terminal."""
    theirs, ours = pty.openpty()
    call = [sys.executable, "-m", "dalle_2", "generate", "x", "--pipeline", "karlo"]
    with subprocess.Popen(call, stdin=ours, stderr=ours, stdout=subprocess.PIPE) as process:
        os.close(ours)
        os.write(theirs, b"n\n")
        seen = b""
        while b"nothing was fetched" not in seen:
            seen += os.read(theirs, 1000)
        assert process.wait() == 1
    os.close(theirs)
    assert b"Do you accept it, and fetch 13.7 GB? [y/N]" in seen


def test_cached_weights_ask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_cache() / "models--kakaobrain--karlo-v1-alpha" / "snapshots" / COMMIT
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(consent, "_somebody_watches", lambda: pytest.fail("a person was asked"))
    assert consent.ask_first("karlo") == "karlo"
    assert find_pipeline("karlo") == find_pipeline(KARLO) == folder


# Karlo as a whole


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("karlo")
    karlo_rig.build(folder)
    return folder


def drawn(source: str | Path) -> torch.Tensor:
    return dalle_2.load(source, device="cpu", dtype="float32").generate(["a red fox"], seeds=[3], steps=2)


def test_from_the_hub_to_a_picture_by_commands_alone(karlo: Path, tmp_path: Path) -> None:
    """The first in a process of its own, steered by the hub's own variables; the second has no network, as no test."""
    with fake_hub.served() as served:
        served.add(KARLO, karlo)
        call = [sys.executable, "-m", "dalle_2", "models", "download", "karlo", "--accept-licence"]
        online = os.environ | {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0"}
        subprocess.run(call, env=online, capture_output=True, check=True)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert main(["generate", "a red fox", "--pipeline", "karlo", "--steps", "2", "--seed", "3", "--out", "out"]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert torch.equal(drawn("karlo"), drawn(karlo))


# Conversion


def test_karlo_becomes_a_folder_of_ours_and_goes_back(karlo: Path, tmp_path: Path) -> None:
    assert main(["models", "convert", str(karlo), "ours"]) == 0
    assert read_manifest(tmp_path / "ours").training == {"converted_from": str(karlo)}
    assert torch.equal(drawn("ours"), drawn(karlo))

    assert main(["models", "convert", "ours", "theirs", "--to", "diffusers"]) == 0
    for path in karlo.rglob("diffusion_pytorch_model.safetensors"):
        given, back = load_file(path), load_file(tmp_path / "theirs" / path.relative_to(karlo))
        assert given.keys() == back.keys()
        assert all(torch.equal(given[name], back[name]) for name in given)
    assert torch.equal(drawn("theirs"), drawn(karlo))


def test_the_last_step_is_written_in_float32_whatever_the_others_are(karlo: Path, tmp_path: Path) -> None:
    assert main(["models", "convert", str(karlo), "half", "--dtype", "bf16"]) == 0
    [path] = (tmp_path / "half").glob("upsampler-*.safetensors")
    kinds = {(name.startswith("last."), tensor.dtype) for name, tensor in load_file(path).items()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    given = load_file(next((karlo / "super_res_last").glob("*.safetensors")))["conv_in.weight"]
    assert torch.equal(load_file(path)["last.network.conv_in.weight"], given)


def test_weights_are_written_in_the_dtype_that_was_asked_for(micro_pipeline: Path, tmp_path: Path) -> None:
    assert main(["models", "convert", str(micro_pipeline), "half", "--dtype", "bf16"]) == 0
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "half" / "decoder.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert main(["models", "convert", str(micro_pipeline), "full"]) == 0
    assert torch.equal(drawn("full"), drawn(micro_pipeline))
    assert read_manifest(tmp_path / "full").training == read_manifest(micro_pipeline).training
    assert (tmp_path / "full" / "README.md").read_text() == (micro_pipeline / "README.md").read_text()


def test_a_folder_that_holds_something_is_left_alone(
    micro_pipeline: Path, karlo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for layout in ("dalle2", "diffusers"):
        assert main(["models", "convert", str(karlo), "mine", "--to", layout]) == 2
        assert "mine is there already and not empty: choose another folder to convert to" in said(capsys)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_what_can_not_be_converted(
    micro_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "convert", str(micro_pipeline), "new", "--to", "diffusers"]) == 2
    assert "this pipeline doesn't have Karlo's shape" in said(capsys)
    assert main(["models", "convert", str(micro_pipeline), "new", "--clip", "some/clip"]) == 2
    assert "has a CLIP of its own" in said(capsys)
    assert main(["models", "convert", "nowhere", "new"]) == 2
    assert "there is no pipeline 'nowhere'" in said(capsys)
    assert not (tmp_path / "new").exists()


def test_licences_go_along(online: FakeHub, karlo: Path, tmp_path: Path) -> None:
    accepted()
    online.add(KARLO, karlo)
    assert main(["models", "convert", "karlo", "ours"]) == 0
    assert "CreativeML Open RAIL-M" in read_manifest(tmp_path / "ours").training["licence"]
    assert "CreativeML Open RAIL-M" in (tmp_path / "ours" / "README.md").read_text()
