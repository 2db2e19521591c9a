"""The model card of a pipeline folder: one for when its maker writes none, and the figures that go into any."""

import json
import re
from pathlib import Path

from dalle_2.pipelines.manifest import Manifest, read_manifest

_CARD = """# {name}

A DALL·E 2 pipeline for `dalle_2`.

```
dalle2 generate "PROMPT" --pipeline THIS_FOLDER
```

| part | file or source |
| --- | --- |
{parts}
"""

FIGURES = "## Figures and failures"
_SECTION = re.compile(rf"^{FIGURES}[ \t]*$.*?(?=^##? |\Z)", re.MULTILINE | re.DOTALL)


def default_card(manifest: Manifest) -> str:
    """Names the parts and what is known of their training."""
    rows = [
        f"| {role} | {part.file or part.hub or part.openclip} |" for role, part in manifest.parts.items()
    ]
    card = _CARD.format(name=manifest.name, parts="\n".join(rows))
    if manifest.training:
        training = json.dumps(manifest.training, ensure_ascii=False, indent=1)
        card += f"\n## Training\n\n```json\n{training}\n```\n"
    return card


def card_text(path: Path) -> str:
    """What a pipeline folder's README.md says; where there is none, what `default_card` would."""
    if path.exists():
        return path.read_text(encoding="utf-8", errors="replace")
    return default_card(read_manifest(path.parent))


def with_figures(card: str, table: str, failures: str) -> str:
    """The card with one section of figures at its end, in place of an older one wherever that stood."""
    rest = _SECTION.sub("", card).rstrip()
    return f"{rest}\n\n{FIGURES}\n\n{table}\n\n{failures}".strip() + "\n"
