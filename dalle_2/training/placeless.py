"""What a stage's result follows from, without the place that its pictures lie at: a folder may be moved."""

from typing import Any

PLACE = ("source", "follow_links")  # where a folder is, and how its pictures are reached


def placeless(identity: dict[str, Any]) -> dict[str, Any]:
    """A stage's identity as earlier releases wrote it, and those of the stages that it goes on from."""
    begun = {name: placeless(part) for name, part in identity.items() if name.endswith("_begun") and part}
    return {**identity, **begun, "data": without_place(identity["data"])}


def without_place(data: dict[str, Any]) -> dict[str, Any]:
    """The data of an identity, of which a folder's are known by their fingerprint."""
    if "pictures" not in data:
        return data
    options = {name: value for name, value in data["options"].items() if name not in PLACE}
    return {name: value for name, value in data.items() if name not in PLACE} | {"options": options}
