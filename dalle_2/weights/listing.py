"""Names of tensors in a sentence."""


def listed(title: str, names: list[str], most: int = 20) -> list[str]:
    """A title with the first names under it and how many there are; nothing for none."""
    if not names:
        return []
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return [f"{title} ({len(names)}): {', '.join(map(_short, names[:most]))}{rest}"]


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:197]}..."
