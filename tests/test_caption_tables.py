"""Tables of captions as programs write them: any delimiter, any form of Unicode, any length."""

import csv
import os
from pathlib import Path

import pytest
from folder_rig import picture, said, write

from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv"])
def test_the_delimiter_is_seen_by_the_heading(tmp_path: Path, delimiter: str, name: str) -> None:
    caption = 'one, two; "three"|four'
    picture(tmp_path / "a.png")
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        rows.writerows([["id", "file name", "caption"], ["3", "a.png", caption], ["", "", ""]])
    assert said(tmp_path) == {"a.png": (caption,)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "a.txt"])
def test_text_in_every_form_of_unicode(tmp_path: Path, encoding: str, name: str) -> None:
    picture(tmp_path / "a.png")
    texts = {
        "captions.csv": "file;caption\r\na.png;ein schöner Käfer – 甲虫\r\n",
        "captions.jsonl": '{"file": "a.png", "caption": "ein schöner Käfer – 甲虫"}\n',
        "a.txt": "ein schöner Käfer – 甲虫\n",
    }
    write(tmp_path / name, texts[name].encode(encoding))
    assert said(tmp_path) == {"a.png": ("ein schöner Käfer – 甲虫",)}


@pytest.mark.parametrize(
    ("table", "captions"),
    [
        ("sep=;\nfile;caption\na.png;red\n", ("red",)),
        ("\n\nfile,caption\na.png,red\n", ("red",)),
        ("file,caption\ra.png,red\r", ("red",)),
        ("file,caption\na.png,a red, round thing, above\n", ("a red, round thing, above",)),
        ("file;caption;\na.png;red;;;\n", ("red",)),
        ("caption,file\n\"two\nlines\",a.png\n", ("two lines",)),
        ("file,caption\na.png\na.png,red\n", ("red",)),
        (f"file,pixels,caption\na.png,{'0' * 200_000},red\n", ("red",)),
        ("filename,description\na.png,red\n", ("red",)),
        ("file,caption\na.png,caf\u0065\u0301\n", ("caf\u00e9",)),
    ],
)  # fmt: skip
def test_tables_as_programs_write_them(tmp_path: Path, table: str, captions: tuple[str, ...]) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "captions.csv", table)
    limit = csv.field_size_limit()
    assert said(tmp_path) == {"a.png": captions}
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("caption,file\na red, round thing,a.png\n", r"line 2 has 3 fields where the heading has 2: put those .* ','"),
        ("name;words\na.png;red\n", r"the columns name, words; expected file, file_name, image or path for"),
        ("a.png,red\n", r"the columns a\.png, red; expected"),
        ("sep=;\nfile;caption\n;red\n", r"captions\.csv line 3 names no picture"),
        ("sep=;\nfile;caption\na.png;\"red\n", r"captions\.csv line 3 is not csv"),
        ("file,words\na.png,red\n".encode("utf-16") + b"\0", r"captions\.csv is not UTF-16 .*: save it as UTF-8"),
    ],
)  # fmt: skip
def test_tables_that_can_mean_two_things_are_refused(tmp_path: Path, table: str | bytes, message: str) -> None:
    picture(tmp_path / "a.png", caption="beside")
    write(tmp_path / "captions.csv", table)
    with pytest.raises(DataError, match=message) as caught:
        ImageFolder(tmp_path, 8)
    assert "\n" not in str(caught.value)


def test_a_table_costs_its_length_and_no_look_at_the_disk_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many paths as rows were followed through every folder above them."""
    picture(tmp_path / "a.png")
    lost = "".join(f"lost/{index}.png,blue\n" for index in range(1_000))
    write(tmp_path / "captions.csv", "file,caption\n" + "a.png,red\n" * 1_000 + lost)
    looks: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **options: looks.append(path) or real(path, **options))
    data = ImageFolder(tmp_path, 8)
    assert len(data.captions(0)) == 1_000
    assert data.report().counts == {"missing": 1_000}
    assert len(looks) < 20
