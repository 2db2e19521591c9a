"""ICC profiles of three primaries and a gamma, written from their definition (ICC.1, version 2).

Cameras that are set to Adobe RGB say so in EXIF and leave the profile out.
"""

import struct
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float

Chromaticity = tuple[float, float]

D65: Chromaticity = (0.3127, 0.3290)
_D50 = (0.9642, 1.0, 0.8249)  # XYZ of the white that all profiles are about

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@cache
def adobe_rgb() -> bytes:
    """Adobe RGB (1998): its primaries, D65, a gamma of 2 + 51/256."""
    return matrix_profile(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256)


def matrix_profile(primaries: tuple[Chromaticity, Chromaticity, Chromaticity], gamma: float) -> bytes:
    """A profile of the xy of red, green and blue, with the white of daylight, D65."""
    columns = to_d50(primaries).T
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": _xyz(_D50)}
    tags |= {name + b"XYZ": _xyz(column) for name, column in zip((b"r", b"g", b"b"), columns.tolist(), strict=True)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    return _file(b"mntrRGB XYZ ", tags)


def to_d50(primaries: tuple[Chromaticity, ...]) -> Float[np.ndarray, "3 3"]:
    """Linear RGB to XYZ under D50, adapted by Bradford's matrix; the columns are the primaries'."""
    unscaled = np.array([_of(xy) for xy in primaries]).T
    white = np.array(_of(D65))
    to_xyz = unscaled * np.linalg.solve(unscaled, white)
    cones = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ white)
    adapted: np.ndarray = np.linalg.solve(_BRADFORD, cones[:, None] * (_BRADFORD @ to_xyz))
    return adapted


def _of(xy: Chromaticity) -> tuple[float, float, float]:
    x, y = xy
    return x / y, 1.0, (1 - x - y) / y


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _file(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """heading, table of tags, and what they hold; `kind`: device class, colour space, connection space."""
    start = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data
    white = struct.pack(">3i", *(round(value * 65536) for value in _D50))
    heading = struct.pack(">I", start + len(content)) + bytes(4) + b"\x02\x40\0\0" + kind + bytes(12) + b"acsp"
    return heading + bytes(28) + white + bytes(128 - 80) + table + content
