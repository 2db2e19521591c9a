"""Mutated pictures, captions and prompts, and signals while pictures are written, some of each kind.

`make test-hostile` has 220,000 of the first and 400 of the second.
"""

import json
from pathlib import Path

import pytest
from hostile.drawing_rig import writers
from hostile.harness import attack
from PIL import Image

from dalle_2.data.image_folder import ImageFolder
from dalle_2.errors import DataError


def test_pictures_are_read_or_refused_in_a_sentence() -> None:
    assert attack("hostile.pictures:CASES", 500, names=["of any kind"]) == []


def test_captions_are_read_or_refused_in_a_sentence() -> None:
    assert attack("hostile.captions:CASES", 150, names=["of any name"]) == []


@pytest.mark.parametrize("links", [True, False])
def test_signals_leave_whole_pictures_or_none(links: bool, tmp_path: Path) -> None:
    assert writers(9, 2, tmp_path, links=links) == []


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("captions.csv", ",".join(f"column {number}" for number in range(20_000))),
        ("captions.csv", f"{'x' * 200_000},caption\na.png,x"),
        ("captions.csv", f"file,caption\n{'x' * 100_000},x"),
        ("captions.jsonl", json.dumps({"file": {"x": "x" * 100_000}, "caption": "x"})),
        ("captions.jsonl", json.dumps({"file": "a.png", "caption": {"x": "x" * 100_000}})),
    ],
)
def test_what_a_stranger_wrote_is_quoted_in_part(name: str, table: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / name).write_text(table)
    with pytest.raises(DataError) as caught:
        ImageFolder(tmp_path, 4)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)
