"""Folders of pictures as other programs and systems lay them out: splits, links, names, tables, and what is lacking."""

import json
import os
import unicodedata
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import fsspec
import numpy as np
import pytest
from folder_rig import picture, said, write
from torch import Tensor
from torch.utils.data import DataLoader

from dalle_2.data.dataset import collate, load_dataset
from dalle_2.data.file_names import FileNames
from dalle_2.data.folders import Unreachable
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError

COMPOSED, APART = "caf\u00e9", "cafe\u0301"  # as typed, and as macOS lists it


# Splits


def test_each_split_has_a_table_of_its_own(tmp_path: Path) -> None:
    """Hugging Face's ImageFolder: names are relative to the table."""
    for name in ("train/0001.png", "train/deep/er/0002.png", "test/0001.png", "validation/b.png"):
        picture(tmp_path / name)
    rows = [
        {"file_name": "0001.png", "text": "red", "label": 3},
        {"file_name": "deep/er/0002.png", "text": "deep red"},
    ]
    write(tmp_path / "train/metadata.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "test/metadata.csv", "file_name,caption\n0001.png,a test\n")
    write(tmp_path / "validation/metadata.jsonl", '{"file_name": "b.png", "prompt": ["one", "two"]}\n')
    wanted = {
        "test/0001.png": ("a test",),
        "train/0001.png": ("red",),
        "train/deep/er/0002.png": ("deep red",),
        "validation/b.png": ("one", "two"),
    }
    assert said(tmp_path) == wanted
    assert said(tmp_path / "train") == {"0001.png": ("red",), "deep/er/0002.png": ("deep red",)}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"test/metadata.jsonl": '{"file_name": "b.png", "label": 1}'},
        {"test/metadata.csv": "file_name,label\nb.png,1\n"},
        {"test/captions.csv": "file,caption\n"},
        {"test/captions.csv": "file,caption\nb.png,\n"},
        {"test/captions.csv": "file,caption\nnone.png,none\n"},
    ],
)
def test_a_split_without_captions_takes_none_from_the_others(tmp_path: Path, other: dict[str, str]) -> None:
    picture(tmp_path / "train/a.png")
    picture(tmp_path / "test/b.png")
    write(tmp_path / "train/captions.csv", "file,caption\na.png,red\n")
    for name, content in other.items():
        write(tmp_path / name, content)
    data = ImageFolder(tmp_path, 8)
    assert [(data.file(i), data.captions(i)) for i in range(len(data))] == [("train/a.png", ("red",))]
    report = data.report()
    assert report.names["no caption"] == ("test/b.png",)
    assert str(report).startswith("1 of 2 pictures used, 1 skipped")


def test_one_split_may_have_a_table_and_the_other_files_beside(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    picture(tmp_path / "train/odd.png", caption="no row")
    picture(tmp_path / "test/b.png", caption="a file")
    write(tmp_path / "train/captions.csv", "file,caption\na.png,a row\n")
    assert said(tmp_path) == {
        "test/b.png": ("a file",), "train/a.png": ("a row",), "train/odd.png": ("no row",),
    }  # fmt: skip


def test_the_nearest_table_that_says_something_wins(tmp_path: Path) -> None:
    for name in ("a.png", "in/b.png", "in/c.png", "in/d.png"):
        picture(tmp_path / name)
    write(tmp_path / "metadata.csv", "file_name,text\na.png,outer a\nin/b.png,outer b\nin/c.png,outer c\n")
    write(tmp_path / "in/captions.csv", "file,caption\nb.png,inner b\nc.png,\n../in/d.png,by the way up\n")
    assert said(tmp_path) == {
        "a.png": ("outer a",), "in/b.png": ("inner b",), "in/c.png": ("outer c",), "in/d.png": ("by the way up",),
    }  # fmt: skip


def test_a_table_of_a_split_may_name_files_from_the_root(tmp_path: Path) -> None:
    picture(tmp_path / "train/images/a.png")
    write(tmp_path / "train/captions.csv", "file,caption\ntrain/images/a.png,red\n")
    assert said(tmp_path) == {"train/images/a.png": ("red",)}


# Links


def hub_snapshot(home: Path) -> Path:
    """A data set as the hub's cache keeps it: names that are links to blobs."""
    repo = home / "datasets--someone--pets"
    snapshot = repo / "snapshots" / ("0" * 40)
    contents = {"train/a.png": picture(home / "made.png").read_bytes()}
    contents["train/metadata.jsonl"] = b'{"file_name": "a.png", "text": "red"}\n'
    for index, (name, content) in enumerate(contents.items()):
        blob = write(repo / "blobs" / f"{index:064x}", content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


def test_a_snapshot_of_the_hub_is_read_whole_and_nothing_else(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    (snapshot / "train/b.png").symlink_to(tmp_path / "made.png")
    (tmp_path / "short").symlink_to(snapshot)
    for root in (snapshot, tmp_path / "short"):
        data = ImageFolder(root, 8)
        assert [(data.file(i), data.caption(i)) for i in range(len(data))] == [("train/a.png", "red")]
        assert data[0].image.mean() > 20
        assert data.verify().names == {"leads out of the folder": ("train/b.png",)}
    assert said(snapshot / "train") == {"a.png": ("red",)}


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder of one picture, with links to a picture, a table, a caption and a folder outside."""
    root = tmp_path / "data"
    picture(root / "a.png", caption="inside")
    (root / "b.png").symlink_to(picture(tmp_path / "out/b.png"))
    picture(root / "c.png")
    (root / "c.txt").symlink_to(write(tmp_path / "out/words.txt", "c from outside"))
    picture(tmp_path / "far/d.png", caption="d far away")
    (tmp_path / "far/back").symlink_to(tmp_path)  # round and round
    (root / "more").symlink_to(tmp_path / "far")
    (root / "captions.csv").symlink_to(write(tmp_path / "out/table.csv", "file,caption\nb.png,b from outside\n"))
    return root


def test_what_leads_out_is_named_with_the_option_that_allows_it(linked: Path) -> None:
    data = ImageFolder(linked, 8)
    assert [data.file(i) for i in range(len(data))] == ["a.png"]
    report = data.verify()
    assert report.names == {
        "leads out of the folder": ("b.png", "c.txt", "captions.csv", "more/"),
        "no caption": ("c.png",),
    }
    text = str(report)
    assert text.startswith("1 of 3 pictures used, 2 skipped")  # a table and a folder are no pictures
    assert "not read for safety; --follow-links, in Python follow_links=True, reads what links lead to" in text


def test_it_is_read_when_that_is_allowed(linked: Path) -> None:
    data = load_dataset(linked, 8, options={"follow_links": True})
    assert isinstance(data, ImageFolder)
    found = {data.file(i): data.caption(i) for i in range(len(data))}
    assert found == {
        "a.png": "inside", "b.png": "b from outside", "c.png": "c from outside", "more/d.png": "d far away",
    }  # fmt: skip
    assert all(data[i].image.shape == (8, 8, 3) for i in range(4))
    assert data.report().counts == {"no caption": 1}  # more/back/out/b.png, which nobody listed as well


def test_a_table_may_lead_out_when_that_is_allowed(tmp_path: Path) -> None:
    outside = picture(tmp_path / "out.png")
    picture(tmp_path / "data/a.png", caption="inside")
    write(tmp_path / "data/captions.csv", f"file,caption\n../out.png,up\n{tmp_path}/far.png,far\na.png,in\n")
    picture(tmp_path / "far.png")
    data = ImageFolder(tmp_path / "data", 8)
    assert data.report().counts == {"leads out of the folder": 2}
    data = ImageFolder(tmp_path / "data", 8, follow_links=True)
    assert {data.caption(i) for i in range(len(data))} == {"up", "far", "in"}
    assert data.verify().skipped == ()
    assert outside.exists()


def test_where_everything_leads_out_the_option_is_named_too(tmp_path: Path) -> None:
    picture(tmp_path / "out.png")
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(DataError, match=r"not followed out of it: a\.png.*--follow-links.*follow_links=True"):
        ImageFolder(root, 8)
    picture(root / "b.png")
    (root / "captions.csv").symlink_to(write(tmp_path / "table.csv", "file,caption\nb.png,red\n"))
    with pytest.raises(DataError, match=r"none of the 1 pictures.*captions\.csv; --follow-links"):
        ImageFolder(root, 8)


def test_links_that_lead_nowhere_or_to_themselves_are_missing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="red")
    for name, target in (("b.png", "gone.png"), ("c.png", "c.png")):
        (tmp_path / name).symlink_to(target)
        (tmp_path / name).with_suffix(".txt").write_text("a link")
    assert ImageFolder(tmp_path, 8).verify().counts["missing"] == 1
    assert len(ImageFolder(tmp_path, 8).verify().skipped) == 2


def test_a_linked_folder_within_is_read_once(tmp_path: Path) -> None:
    """Where it lies; by the link only if it lies hidden, as data sets under version control do."""
    picture(tmp_path / "train/a.png", caption="red")
    picture(tmp_path / ".store/b.png", caption="blue")
    for name, target in (("all", "train"), ("kept", ".store"), ("train/round", "..")):
        (tmp_path / name).symlink_to(target)
    assert said(tmp_path) == {"kept/b.png": ("blue",), "train/a.png": ("red",)}
    assert ImageFolder(tmp_path, 8).verify().skipped == ()


# Names


@pytest.mark.parametrize(("on_disk", "written"), [(APART, COMPOSED), (COMPOSED, APART), (APART, APART)])
def test_accents_may_be_written_in_either_form(tmp_path: Path, on_disk: str, written: str) -> None:
    assert COMPOSED != APART
    picture(tmp_path / f"table/{on_disk}/{on_disk}.png")
    write(tmp_path / "table/captions.csv", f"file,caption\n{written}/{written}.png,from a table\n")
    picture(tmp_path / f"beside/{on_disk}.png")
    write(tmp_path / f"beside/{written}.txt", f"{written} beside")
    captions = [caption for several in said(tmp_path).values() for caption in several]
    assert captions == ["caf\u00e9 beside", "from a table"]


def test_a_copy_with_the_other_accents_is_the_same_data(tmp_path: Path) -> None:
    names = ("cafe", "cafz", COMPOSED)  # which sorts before `cafz` in one form and after it in the other
    for form, root in (("NFC", tmp_path / "linux"), ("NFD", tmp_path / "moved/mac")):
        for name in names:
            picture(root / f"{unicodedata.normalize(form, name)}.png", caption=f"{name} one\n{name} two")
    first, second = ImageFolder(tmp_path / "linux", 8), ImageFolder(tmp_path / "moved/mac", 8)
    assert first.fingerprint() == second.fingerprint()
    assert [first.caption(i) for i in range(3)] == [second.caption(i) for i in range(3)]


@pytest.mark.parametrize("name", ["cat.TXT", "cat.caption", "cat.Caption", "cat.Json", "cat.JSON", "cat.PNG.txt"])
def test_captions_beside_pictures_by_every_ending(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "cat.PNG")
    write(tmp_path / name, '{"caption": "a cat"}' if "js" in name.lower() else "a cat")
    assert said(tmp_path) == {"cat.PNG": ("a cat",)}


@pytest.mark.parametrize("name", ["Captions.CSV", "CAPTIONS.TSV", "Metadata.Jsonl", "metadata.tsv"])
def test_tables_by_every_spelling(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "Cat.JPG")
    rows = (
        '{"File_Name": "Cat.JPG", "TEXT": "a cat"}' if "js" in name.lower() else "Image-Path\tCaption \nCat.JPG\ta cat"
    )
    write(tmp_path / name, rows)
    assert said(tmp_path) == {"Cat.JPG": ("a cat",)}


def test_the_case_of_a_name_matters_only_where_it_tells_files_apart(tmp_path: Path) -> None:
    for name in ("Images/Cat.JPG", "dog.png", "Dog.png", "Bird.png", "bird.png"):
        picture(tmp_path / name)
    write(tmp_path / "captions.csv", "file,caption\nimages/cat.jpg,a cat\nDog.png,Dog\nBIRD.png,which?\n")
    assert said(tmp_path) == {"Dog.png": ("Dog",), "Images/Cat.JPG": ("a cat",)}
    assert ImageFolder(tmp_path, 8).report().names["missing"] == ("BIRD.png",)


@pytest.mark.parametrize(
    "written",
    [r"images\my cat.png", r".\images\my cat.png", "images/my%20cat.png", " images/my cat.png ", "./images//my cat.png",
     "/images/my cat.png", "IMAGES/MY CAT.PNG", "images/../images/my cat.png"],
)  # fmt: skip
def test_names_as_programs_write_them(tmp_path: Path, written: str) -> None:
    picture(tmp_path / "images/my cat.png")
    write(tmp_path / "captions.csv", f"file,caption\n{written},a cat\n")
    assert said(tmp_path) == {"images/my cat.png": ("a cat",)}


def test_absolute_names_in_the_folder_are_read_and_others_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    path = picture(root / "images/cat.png")
    (tmp_path / "short").symlink_to(root)
    write(root / "captions.csv", f"file,caption\n{path},a cat\n{tmp_path}/other.png,x\nC:\\data\\other.png,y\n")
    for place in (root, tmp_path / "short"):
        data = ImageFolder(place, 8)
        assert [(data.file(i), data.caption(i)) for i in range(len(data))] == [("images/cat.png", "a cat")]
        assert data.report().counts == {"leads out of the folder": 2}
    (root / "captions.csv").unlink()
    write(root / "images/captions.csv", f"file,caption\n{path},a cat\n")
    assert said(root) == {"images/cat.png": ("a cat",)}


def test_a_name_that_holds_what_others_mean_by_it_is_that_file(tmp_path: Path) -> None:
    for name in ("50%25.png", "50%.png", r"a\b.png", "a/b.png"):
        picture(tmp_path / name)
    names = FileNames(["50%25.png", "50%.png", r"a\b.png", "a/b.png"])
    assert [names.find(name) for name in ("50%25.png", "50%.png", r"a\b.png")] == ["50%25.png", "50%.png", r"a\b.png"]


def test_what_systems_leave_behind_is_no_picture(tmp_path: Path) -> None:
    picture(tmp_path / "cat.png", caption="a cat")
    for name in ("__MACOSX/._cat.png", "__MACOSX/cat.png", "._cat.png", "@eaDir/cat.png", ".ipynb_checkpoints/cat.png"):
        picture(tmp_path / name, caption="rubbish")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        write(tmp_path / name, b"\0\1")
    data = ImageFolder(tmp_path, 8)
    assert str(data.verify()) == "all 1 pictures used"


def test_pictures_of_one_name_share_the_caption_beside_them(tmp_path: Path) -> None:
    picture(tmp_path / "cat.jpg", caption="a cat")
    picture(tmp_path / "cat.png")
    assert said(tmp_path) == {"cat.jpg": ("a cat",), "cat.png": ("a cat",)}


# What is lacking


def test_files_that_a_table_names_in_vain_are_counted_and_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"")
    write(tmp_path / "captions.csv", "file,caption\nb.png,x\na.png,red\nbroken.png,y\nb.png,z\n../c.png,w\n")
    data = ImageFolder(tmp_path, 8)
    report = data.verify()
    assert report.names == {
        "missing": ("b.png",), "empty file": ("broken.png",), "leads out of the folder": ("../c.png",),
    }  # fmt: skip
    assert report.found == 4
    assert str(report).startswith("1 of 4 pictures used, 3 skipped")
    assert data[0].caption == "red"
    with pytest.raises(DataError, match=r"b\.png can't be used \(missing: .*captions\.csv line 2\)"):
        ImageFolder(tmp_path, 8, on_error="raise")


def test_only_where_all_are_missing_it_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "captions.csv", "file,caption\nb.png,x\nc.png,y\n")
    with pytest.raises(DataError, match=r"names 2 files that don't exist \('b\.png', 'c\.png'\), and none that does"):
        ImageFolder(tmp_path, 8)


def test_one_caption_that_can_not_be_read_leaves_out_one_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="red")
    for name, content in (("b.txt", "caf\xe9".encode("cp1252")), ("c.json", b"{"), ("d.json", b'{"title": "x"}')):
        picture((tmp_path / name).with_suffix(".png"))
        write(tmp_path / name, content)
    data = ImageFolder(tmp_path, 8)
    assert data.report().names == {"caption can't be read": ("b.png", "c.png", "d.png")}
    details = {item.name: item.detail for item in data.report().skipped}
    assert details["b.png"].endswith("b.txt is not UTF-8 (byte 3): save it as UTF-8")
    with pytest.raises(DataError, match=r"b\.png can't be used .*save it as UTF-8"):
        ImageFolder(tmp_path, 8, on_error="raise")


@pytest.mark.parametrize("name", ["labels.csv", "metadata.parquet", "captions.txt"])
def test_a_table_under_another_name_is_pointed_out(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / name, "file,caption\na.png,red\n")
    with pytest.raises(DataError, match=rf"a table captions\.csv, .* \(no such table: {name}\)"):
        ImageFolder(tmp_path, 8)


# Elsewhere, and in several processes


def test_the_same_pictures_at_another_place_have_the_same_fingerprint(tmp_path: Path) -> None:
    for place in ("one", "far/away/two"):
        picture(tmp_path / place / "a.png", caption="red")
    first = ImageFolder(tmp_path / "one", 8)
    assert first.fingerprint() == ImageFolder(tmp_path / "far/away/two", 16).fingerprint()


def test_the_fingerprint_is_computed_once_for_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", caption="red")
    (tmp_path / "b.png").write_bytes(b"")
    write(tmp_path / "b.txt", "broken")
    data = ImageFolder(tmp_path, 8)
    fingerprint = data.fingerprint()
    monkeypatch.setattr(type(data), "_stamp", None)  # what it is made of
    larger = data.at_size(16)
    assert larger.fingerprint() == data.fingerprint() == fingerprint
    assert (larger[0].image.shape, data[0].image.shape) == ((16, 16, 3), (8, 8, 3))
    larger.verify()
    assert data.report().names == larger.report().names == {"empty file": ("b.png",)}


def test_what_the_processes_of_a_loader_could_not_read_is_reported(tmp_path: Path) -> None:
    for index in range(12):
        picture(tmp_path / f"{index:02}.png", caption="red")
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "08.png").write_bytes(b"no picture")
    data = ImageFolder(tmp_path, 8)
    loader = DataLoader(data, batch_size=3, num_workers=2, collate_fn=collate)
    assert sum(len(batch["caption"]) for batch in loader) == 12
    assert data.report().names == {"empty file": ("03.png",), "not a picture": ("08.png",)}
    assert str(data.report()).startswith("10 of 12 pictures used, 2 skipped")


def test_a_data_set_sent_to_a_new_process_keeps_its_marks_in_common(tmp_path: Path) -> None:
    """Where processes are started anew, as on Windows and macOS, and not forked."""
    picture(tmp_path / "a.png", caption="red")
    (tmp_path / "b.png").write_bytes(b"")
    write(tmp_path / "b.txt", "broken")
    data = ImageFolder(tmp_path, 8)
    sent = ForkingPickler.loads(bytes(ForkingPickler.dumps(data)))
    np.testing.assert_array_equal(sent[0].image, sent[1].image)
    assert data.report().names == {"empty file": ("b.png",)}


def test_without_shared_memory_a_folder_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Tensor) -> None:
        raise RuntimeError("no shared memory")

    monkeypatch.setattr(Tensor, "share_memory_", refuse)
    picture(tmp_path / "a.png", caption="red")
    (tmp_path / "b.png").write_bytes(b"")
    write(tmp_path / "b.txt", "broken")
    assert ImageFolder(tmp_path, 8).verify().names == {"empty file": ("b.png",)}


def test_a_caption_that_can_not_be_fetched_is_no_broken_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory")
    for name in ("a.png", "a.txt"):
        files.pipe_file(f"/lost/{name}", b"x")
    monkeypatch.setattr(type(files), "cat_file", lambda *_: (_ for _ in ()).throw(ConnectionError("reset by peer")))
    with pytest.raises(Unreachable, match=r"can't fetch a\.txt"):
        ImageFolder("memory://lost", 8)
    files.store.clear()
