"""The long form for weight files, tokenizers, vocabularies, manifests and settings: 50,000 inputs."""

import pytest

from hostile.harness import attack, tries_of

pytestmark = pytest.mark.hostile
ROW = 50_000  # of which the 5 readers of weight files have half


@pytest.mark.parametrize("cases", ["hostile.weights:CASES", "hostile.folders:CASES"])
def test_hostile_files_are_read_or_refused_in_a_sentence(cases: str):
    assert attack(cases, tries_of(ROW) // 2) == []
