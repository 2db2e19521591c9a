"""The long forms with pictures, captions and prompts."""

import pytest

from hostile.harness import attack, tries_of

pytestmark = pytest.mark.hostile


@pytest.mark.parametrize(("cases", "row"), [("hostile.pictures:CASES", 200_000), ("hostile.captions:CASES", 20_000)])
def test_mutated_files_are_read_or_refused_in_a_sentence(cases: str, row: int) -> None:
    assert attack(cases, tries_of(row)) == []
