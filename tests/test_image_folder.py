"""Folders of pictures as people have them: captions in four forms, and files that are broken in every way."""

import io
import json
import struct
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from dalle_2.data import folders
from dalle_2.data.caption_text import normalise
from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError, MissingExtra, UsageError

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def picture(path: Path, colour=RED, size=(40, 30), caption: str | None = "a thing", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def noisy(size=(64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def middle(example) -> tuple[int, ...]:
    size = example.image.shape[0]
    return tuple(int(v) for v in example.image[size // 2, size // 2])


def near(colour, other, tolerance=6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(colour, other, strict=True))


def bomb() -> bytes:
    """A few bytes of PNG that announce 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pictures_are_sorted_fitted_and_captioned(tmp_path):
    picture(tmp_path / "b.PNG", GREEN, caption="  green\t one ")
    picture(tmp_path / "a.jpg", RED, caption="red one", quality=95)
    picture(tmp_path / "deep/er/c.webp", BLUE, caption="blue one")
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / ".cache/d.png")
    data = ImageFolder(tmp_path, 16)
    assert [data.file(i) for i in range(len(data))] == ["a.jpg", "b.PNG", "deep/er/c.webp"]
    assert [example.caption for example in map(data.__getitem__, range(3))] == [
        "red one",
        "green one",
        "blue one",
    ]
    for example, colour in zip((data[0], data[1], data[2]), (RED, GREEN, BLUE), strict=True):
        assert example.image.shape == (16, 16, 3)
        assert example.image.dtype == np.uint8
        assert near(middle(example), colour)
    assert str(data.verify()) == "all 3 pictures used"
    with pytest.raises(IndexError):
        data[3]


def test_every_kind_of_broken_picture_is_skipped_counted_and_named(tmp_path):
    good = [
        picture(tmp_path / f"{name}.png", colour) for name, colour in (("0", RED), ("m", GREEN), ("z", BLUE))
    ]
    buffer = io.BytesIO()
    noisy().save(buffer, "JPEG")
    broken = {
        "damaged or truncated": {"a1.jpg": buffer.getvalue()[:900], "a2.png": good[0].read_bytes()[:60]},
        "empty file": {"b1.png": b"", "b2.gif": b""},
        "not a picture": {"c1.png": b"<html>404</html>", "c2.jpeg": bytes(range(256)), "c3.webp": b"RIFF"},
        "too large": {"d1.png": bomb()},
    }
    for files in broken.values():
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).with_suffix(".txt").write_text("broken")
    picture(tmp_path / "e1.png", caption=None)
    picture(tmp_path / "e2.png", caption="  \n ")

    data = ImageFolder(tmp_path, 16)
    assert len(data) == 11
    examples = [data[i] for i in range(len(data))]
    report = data.report()
    expected = {reason: tuple(sorted(files)) for reason, files in broken.items()}
    assert report.names == {**expected, "no caption": ("e1.png", "e2.png")}
    assert report.counts == {
        "damaged or truncated": 2, "empty file": 2, "not a picture": 3, "too large": 1, "no caption": 2,
    }  # fmt: skip
    assert report.found == 13
    text = str(report)
    assert text.splitlines()[0] == "3 of 13 pictures used, 10 skipped"
    assert all(item.name in text for item in report.skipped)

    # The next good picture stands in, with its own caption, again and again.
    assert [near(middle(example), GREEN) for example in examples[1:10]] == [True] * 9
    assert {example.caption for example in examples} == {"a thing"}
    again = ImageFolder(tmp_path, 16)
    for i in reversed(range(len(data))):
        np.testing.assert_array_equal(again[i].image, examples[i].image)
    assert again.report().names == report.names


def test_the_last_picture_is_replaced_by_the_first(tmp_path):
    picture(tmp_path / "a.png", RED, caption="red")
    (picture(tmp_path / "b.png", caption="blue")).write_bytes(b"")
    example = ImageFolder(tmp_path, 8)[1]
    assert near(middle(example), RED)
    assert example.caption == "red"


def test_a_broken_picture_can_be_an_error(tmp_path):
    picture(tmp_path / "a.png")
    (picture(tmp_path / "b.png")).write_bytes(b"")
    data = ImageFolder(tmp_path, 8, on_error="raise")
    with pytest.raises(DataError, match=r"b\.png can't be used \(empty file\): repair it"):
        data[1]


def test_unusual_pictures_are_read_properly(tmp_path):
    picture(tmp_path / "exif.jpg", RED, (40, 40))
    turned = Image.new("RGB", (40, 20), RED)
    turned.paste(BLUE, (0, 0, 20, 20))  # blue on the left; orientation 6 turns it to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "exif.jpg", exif=exif, quality=95)
    for name, image, options in (
        ("cmyk.jpg", Image.new("RGB", (20, 20), GREEN).convert("CMYK"), {"quality": 95}),
        ("deep.png", Image.fromarray(np.full((20, 20), 65535 // 2, np.uint16)), {}),
        ("clear.png", Image.new("RGBA", (20, 20), (*RED, 0)), {}),
        ("film.gif", Image.new("RGB", (20, 20), GREEN), {}),
    ):
        if name == "film.gif":
            options = {"save_all": True, "append_images": [Image.new("RGB", (20, 20), BLUE)]}
        image.save(tmp_path / name, **options)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    data = ImageFolder(tmp_path, 20, resize="squash")
    found = {data.file(i): data[i].image for i in range(len(data))}
    assert data.verify().counts == {}
    assert near(found["exif.jpg"][3, 10], BLUE, 20)
    assert near(found["exif.jpg"][16, 10], RED, 20)
    assert near(found["cmyk.jpg"][10, 10], GREEN, 30)
    assert near(found["deep.png"][10, 10], (127, 127, 127), 2)
    assert near(found["clear.png"][10, 10], (255, 255, 255), 0)
    assert near(found["film.gif"][10, 10], GREEN, 6)


def test_resize_crops_squashes_or_pads(tmp_path):
    wide = Image.new("RGB", (60, 20), RED)
    wide.paste(GREEN, (20, 0, 40, 20))
    wide.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("flag")
    crop, squash, pad = (ImageFolder(tmp_path, 20, resize=r)[0].image for r in ("crop", "squash", "pad"))
    assert near(crop[10, 2], GREEN)
    assert near(crop[10, 17], GREEN)
    assert near(squash[10, 2], RED)
    assert near(squash[10, 10], GREEN)
    assert near(pad[1, 10], (255, 255, 255))
    assert near(pad[10, 10], GREEN)


# Captions


def test_one_of_several_captions_is_chosen_by_the_seed(tmp_path):
    for i in range(40):
        picture(tmp_path / f"{i:02}.png", caption="one\n\n two \nthree\n", size=(4, 4))
    chosen = [[ImageFolder(tmp_path, 4, seed=seed).caption(i) for i in range(40)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(chosen[0]) == {"one", "two", "three"}
    assert ImageFolder(tmp_path, 4).captions(0) == ("one", "two", "three")


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ({"caption": " a  cat "}, ("a cat",)),
        ({"text": ["a cat", "", "a dog"], "id": 3}, ("a cat", "a dog")),
        ({"Caption": "first", "text": "second"}, ("first",)),
    ],
)
def test_json_captions(tmp_path, content, captions):
    picture(tmp_path / "a.png", caption=None)
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert ImageFolder(tmp_path, 8).captions(0) == captions


TABLES = {
    "captions.csv": (
        'file,width,caption\n./sub/b.png,3,"green, thing"\na.png,3,red\na.png,3,also red\nc.png,3,\n'
    ),
    "metadata.csv": 'File_Name, Text\r\nsub/b.png,"green, thing"\r\na.png,red\r\na.png,also red\r\n',
    "captions.jsonl": (
        '{"path": "a.png", "caption": ["red", "also red"]}\n\n{"path": "sub/b.png", "text": "green, thing"}'
    ),
    "metadata.jsonl": (
        '{"file_name": "sub/b.png", "text": "green, thing"}\n{"image": "a.png", "text": ["red", "also red"]}'
    ),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_captions(tmp_path, table):
    picture(tmp_path / "a.png", RED, caption="not this one")
    picture(tmp_path / "sub/b.png", GREEN, caption=None)
    picture(tmp_path / "c.png", BLUE, caption=None)
    (tmp_path / table).write_bytes(b"\xef\xbb\xbf" + TABLES[table].encode())
    data = ImageFolder(tmp_path, 8)
    assert [(data.file(i), data.captions(i)) for i in range(len(data))] == [
        ("a.png", ("red", "also red")),
        ("sub/b.png", ("green, thing",)),
    ]
    assert near(middle(data[1]), GREEN)
    assert data.verify().names == {"no caption": ("c.png",)}


def test_captions_are_one_clean_line():
    assert normalise(" a\u00a0red \n\t thing ") == "a red thing"
    assert normalise("half \ud83d a character").encode() == b"half ? a character"


# What is refused

LATIN = "caf\xe9".encode("latin-1")
BAD_FILES = [
    ({"a.txt": LATIN}, r"a\.txt is not UTF-8 \(byte 3\): save it as UTF-8"),
    ({"captions.csv": b"file,caption\na.png," + LATIN}, r"captions\.csv is not UTF-8"),
    ({"captions.csv": b"name,words\na.png,red\n"}, r"columns name, words; expected file, .* caption or text"),
    ({"captions.csv": b""}, r"columns none; expected"),
    ({"captions.csv": b"file,caption\n"}, r"names no pictures"),
    ({"captions.csv": b"file,caption\n,red\n"}, r"line 2 names no picture"),
    ({"captions.csv": b'file,caption\na.png,"red\n'}, r"is not csv"),
    ({"captions.csv": b"file,text\nb.png,\nc.png,\nd.png,\ne.png,\n"}, r"4 files .*'b\.png', .*\.\.\.\)"),
    ({"captions.csv": b"file,caption\n../out.png,x\n"}, r"line 2 names '\.\./out\.png', which leads out"),
    ({"captions.csv": b"file,caption\n/etc/hosts,x\n"}, r"leads out of the folder"),
    ({"captions.csv": b"file,caption\nlink.png,x\n"}, r"'link\.png', which leads out of the folder"),
    ({"captions.csv": b"file,caption\nlinked/out.png,x\n"}, r"leads out of the folder"),
    ({"captions.jsonl": b'{"file": "a\\u0000.png", "caption": "x"}'}, r"leads out of the folder"),
    ({"captions.jsonl": b'{"file": "a.png", "caption": "x"}\nred'}, r"captions\.jsonl line 2 is not JSON"),
    ({"captions.jsonl": b'["a.png", "red"]'}, r"must be a JSON object"),
    ({"captions.jsonl": b'{"file": "a.png", "caption": 3}'}, r"must be a text or a list of texts, got '3'"),
    ({"captions.csv": b"file,caption\na.png,x", "metadata.jsonl": b""}, r"captions\.csv and metadata\.jsonl"),
    ({"a.txt": b"", "a.json": b'{"title": "red"}'}, r"a\.json has no key caption or text"),
    ({"a.txt": b"", "a.json": b"{"}, r"a\.json is not JSON"),
    ({"a.txt": b""}, r"none of the 1 pictures in .* has a caption: put NAME\.txt beside NAME\.png"),
    ({"a.png": b""}, r"none of the 1 captioned pictures in .* can be read: 1 empty file"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_captions_and_tables_are_refused_in_one_sentence(tmp_path, files, message):
    root = tmp_path / "data"
    picture(root / "a.png")
    outside = picture(tmp_path / "out.png")
    (root / "link.png").symlink_to(outside)
    (root / "linked").symlink_to(tmp_path)
    for name, content in files.items():
        (root / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        ImageFolder(root, 8)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_a_file_and_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="doesn't exist: name a folder"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(DataError, match="is a file: name a folder"):
        ImageFolder(picture(tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"empty holds no pictures: expected files named \*\.png"):
        ImageFolder(tmp_path / "empty")
    (tmp_path / "empty/more").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"holds no pictures \(not followed out of it: more/\)"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(UsageError, match="size must be at least 1"):
        ImageFolder(tmp_path, 0)


def test_links_within_the_folder_are_read_and_links_out_of_it_are_named(tmp_path):
    root = tmp_path / "data"
    picture(root / "a.png", GREEN)
    (root / "b.png").symlink_to(root / "a.png")
    (root / "b.txt").write_text("the same")
    (root / "c.png").symlink_to(picture(tmp_path / "out.png"))
    (root / "c.txt").write_text("outside")
    data = ImageFolder(root, 8)
    assert [data.file(i) for i in range(len(data))] == ["a.png", "b.png"]
    assert data.verify().names == {"leads out of the folder": ("c.png",)}


def test_names_that_could_upset_a_terminal_are_shown_escaped(tmp_path):
    picture(tmp_path / "a.png")
    (picture(tmp_path / "b\x1b[2J\n.png")).write_bytes(b"")
    text = str(ImageFolder(tmp_path, 8).verify())
    assert r"b\x1b[2J\n.png" in text
    assert text.count("\n") == 1


def test_long_lists_of_names_are_cut_in_the_text_only(tmp_path):
    picture(tmp_path / "a.png")
    for i in range(25):
        (tmp_path / f"b{i:02}.png").write_bytes(b"x")
    report = ImageFolder(tmp_path, 8).report()
    assert len(report.names["no caption"]) == 25
    assert str(report).endswith("b19.png, ... and 5 more")


# Addresses


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def upload(files, name: str, content: bytes) -> None:
    files.pipe_file(f"/pets/{name}", content)


def test_a_folder_behind_an_address(memory, tmp_path):
    content = picture(tmp_path / "a.png", GREEN).read_bytes()
    upload(memory, "a.png", content)
    upload(memory, "a.txt", b"green")
    upload(memory, "sub/b.png", b"rubbish")
    upload(memory, "sub/b.txt", b"broken")
    upload(memory, ".hidden/c.png", content)
    data = ImageFolder("memory://pets", 8)
    assert [(data.file(i), data[i].caption) for i in range(2)] == [("a.png", "green"), ("sub/b.png", "green")]
    assert near(middle(data[1]), GREEN)
    assert data.report().names == {"not a picture": ("sub/b.png",)}


def test_a_table_behind_an_address_may_not_leave_it(memory):
    upload(memory, "captions.csv", b"file,caption\n../secret.png,x\n")
    with pytest.raises(DataError, match="leads out of the folder"):
        ImageFolder("memory://pets")


def test_a_failing_network_is_not_a_broken_picture(memory, tmp_path, monkeypatch):
    upload(memory, "a.png", picture(tmp_path / "a.png").read_bytes())
    upload(memory, "a.txt", b"red")
    data = ImageFolder("memory://pets", 8)
    monkeypatch.setattr(
        type(memory), "cat_file", lambda *_: (_ for _ in ()).throw(ConnectionError("reset by peer"))
    )
    with pytest.raises(folders.Unreachable, match=r"can't fetch a\.png from memory://pets: reset by peer"):
        data[0]
    assert data.report().counts == {}


def test_addresses_that_lead_nowhere(memory, monkeypatch):
    with pytest.raises(DataError, match="memory://none doesn't exist or is empty"):
        ImageFolder("memory://none")
    with pytest.raises(DataError, match="can't read the data folder nosuch://x"):
        ImageFolder("nosuch://x")
    monkeypatch.setattr(
        folders.fsspec.core, "url_to_fs", lambda url: (_ for _ in ()).throw(ImportError("s3fs"))
    )
    with pytest.raises(MissingExtra, match=r"dalle_2\[s3\]"):
        ImageFolder("s3://bucket/pets")


# Fingerprint


def test_the_fingerprint_follows_names_contents_captions_and_cut_but_not_size(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", GREEN)
    base = ImageFolder(tmp_path, 8).fingerprint()
    assert ImageFolder(tmp_path, 32).fingerprint() == base
    changes = [
        ImageFolder(tmp_path, 8, resize="pad").fingerprint(),
        ImageFolder(tmp_path, 8, seed=1).fingerprint(),
    ]
    (tmp_path / "a.txt").write_text("another thing")
    changes.append(ImageFolder(tmp_path, 8).fingerprint())
    noisy().save(tmp_path / "b.png")
    changes.append(ImageFolder(tmp_path, 8).fingerprint())
    (tmp_path / "b.png").rename(tmp_path / "a2.png")
    (tmp_path / "b.txt").rename(tmp_path / "a2.txt")
    changes.append(ImageFolder(tmp_path, 8).fingerprint())
    assert len({base, *changes}) == 6
