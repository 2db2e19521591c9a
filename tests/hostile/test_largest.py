"""What the largest pictures cost."""

import subprocess
import sys
from pathlib import Path

import pytest

from hostile.drawing_rig import surroundings

pytestmark = pytest.mark.hostile


def said(*words: object) -> list[str]:
    command = [sys.executable, "-m", "hostile.largest", *map(str, words)]
    return subprocess.run(command, env=surroundings(), stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def test_no_picture_that_is_read_costs_600_megabytes_or_ten_seconds(tmp_path: Path) -> None:
    costs = {Path(path).name: tuple(map(float, said(path))) for path in said(tmp_path)}
    print()
    for name, (memory, seconds) in sorted(costs.items(), key=lambda item: -item[1][0]):
        print(f"  {name}: +{memory:.0f} MB, {seconds} s")
    assert len(costs) > 35
    assert {name: cost for name, cost in costs.items() if cost[0] > 600 or cost[1] > 10} == {}
