"""The scans of a JPEG, by its markers (ITU T.81, annex B)."""

import re
from collections.abc import Iterator

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # neither a byte of a scan, nor a restart in one
_START, _END, _SCAN, _ALONE = 0xD8, 0xD9, 0xDA, 0x01


def scans(data: bytes) -> Iterator[int]:
    """How many components each scan of a file's first picture has."""
    at = 0
    while (found := _MARKER.search(data, at)) is not None and found[1][0] != _END:
        marker, at = found[1][0], found.end()
        if marker in (_START, _ALONE):
            continue
        if marker == _SCAN:
            yield int.from_bytes(data[at + 2 : at + 3])
        at += int.from_bytes(data[at : at + 2])
