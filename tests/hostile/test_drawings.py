"""The long form of signals while pictures are written: 400, of which 40 to whole commands."""

from pathlib import Path

import pytest

from hostile.drawing_rig import commands, writers
from hostile.harness import seed_of, tries_of

pytestmark = pytest.mark.hostile


@pytest.mark.parametrize(("links", "row"), [(True, 300), (False, 60)])
def test_under_a_pictures_name_lies_a_whole_one(links: bool, row: int, tmp_path: Path) -> None:
    assert writers(min(row, tries_of(row)), seed_of(), tmp_path, links=links) == []


def test_whole_commands_leave_whole_pictures_and_the_signals_status(tmp_path: Path, micro_pipeline: Path) -> None:
    assert commands(min(40, tries_of(40)), seed_of(), tmp_path, micro_pipeline) == []
