"""Folders of tiny captioned pictures, and what is read of them."""

from pathlib import Path

from PIL import Image

from dalle_2.data.image_folder import ImageFolder


def picture(path: Path, colour: tuple[int, int, int] = (220, 30, 30), caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 12), colour).save(path, format="PNG")
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def said(root: Path, **options: object) -> dict[str, tuple[str, ...]]:
    data = ImageFolder(root, 8, **options)  # type: ignore[arg-type]
    return {data.file(i): data.captions(i) for i in range(len(data))}
