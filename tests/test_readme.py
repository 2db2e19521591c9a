"""What the README shows really runs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dalle_2.cli.main import COMMANDS
from dalle_2.paths import shipped_pipelines

ROOT = Path(__file__).parent.parent
LESS = {
    "inpaint.PARTICLES": 4, "redrawn.PARTICLES": 4, "redrawn.DEPTHS": (0.8,), "redrawn.GUIDANCE": (1.5,),
    "held.STEPS": 5, "redrawn.STEPS": 10, "plans.MANY_STEPS": 5,
}  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.strip().splitlines()[0])
def test_python_blocks_run(block: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, less in LESS.items():  # the same calls on the same pipeline, with less to choose among and fewer steps
        monkeypatch.setattr(f"dalle_2.inference.{name}", less)
    exec(compile(block, "README.md", "exec"), {})


def test_commands_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if "dalle2 " in line]
    named = {shlex.split(line, comments=True)[1] for line in lines}
    assert named
    assert named <= COMMANDS.keys()


def test_edits_lie_where_it_says() -> None:
    (said,) = re.findall(r"^Every edit of the paper.*?^$", README, re.DOTALL | re.MULTILINE)
    places = {"outpaint": "inpaint", "reconstructions": "reconstruct", "reranked": "rerank"}
    named = [name for name in re.findall(r"`(\w+)`", said) if name not in {"reconstruct", "rerank"}]
    assert {"variations", *places} <= {*named}
    for name in ["text_diff", *named]:
        module = importlib.import_module(f"dalle_2.inference.{places.get(name, name)}")
        assert callable(getattr(module, name))


def test_pictures_and_links_are_there() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_toml_blocks_are_recipes(workdir: Path) -> None:
    from dalle_2.presets import resolve

    (workdir / "run.toml").write_text(blocks("toml")[0])
    assert resolve(["run.toml"]).decoder.run.images == 500_000


def test_the_shipped_pipeline_is_small() -> None:
    files = [path for path in (shipped_pipelines() / "shapes-tiny").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
