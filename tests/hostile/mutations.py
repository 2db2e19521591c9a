"""Changes to sound files, as damage and malice make them."""

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

NUMBERS = (
    0,
    1,
    2,
    4,
    8,
    16,
    127,
    128,
    255,
    256,
    1000,
    32_767,
    32_768,
    65_535,
    65_536,
    10**6,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
PNG = b"\x89PNG\r\n\x1a\n"


def mutated(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes in a row. others: files of its kind, from which pieces may come."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_CHANGES)(random, data, others)
    return data


def _place(random: Random, data: bytes) -> int:
    """Half of all changes are in the heading, where sizes and places stand."""
    return random.randrange(min(len(data), 100) if random.random() < 0.5 else len(data)) if data else 0


def _bytes(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 40)) if data else 0):
        changed[_place(random, data)] = random.randrange(256)
    return bytes(changed)


def _bits(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        changed[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _number(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at, form = _place(random, data), random.choice((">H", "<H", ">I", "<I"))
    value = random.choice(NUMBERS) + random.choice((0, 0, -1, 1))
    number = struct.pack(form, value % 256 ** struct.calcsize(form))
    return data[:at] + number + data[at + len(number) :]


def _cut(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _without(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = _place(random, data)
    return data[:at] + data[at + random.choice((1, 2, 4, 30)) :]


def _twice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at, length = _place(random, data), random.choice((1, 4, 30, 200))
    return data[:at] + data[at : at + length] * random.choice((2, 2, 3, 50)) + data[at + length :]


def _more(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = _place(random, data)
    return data[:at] + random.randbytes(random.choice((1, 4, 60))) + data[at:]


def _spliced(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return data[: _place(random, data)] + other[_place(random, other) :]


_CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _bytes, _bytes, _bits, _number, _number, _number, _cut, _without, _twice, _more, _spliced,
)  # fmt: skip


def mutated_png(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The same, in half of all tries inside a chunk and with right check sums, so that what reads it meets that."""
    if random.random() < 0.5:
        return mutated(random, data, others)
    chunks = list(_chunks(data))
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(chunks))
        kind, body = chunks[at]
        chunks[at] = (kind, _changed_body(random, kind, body))
        if random.random() < 0.2:
            chunks.insert(random.randrange(len(chunks)), chunks[at])
    return PNG + b"".join(_chunk(kind, body) for kind, body in chunks)


def _changed_body(random: Random, kind: bytes, body: bytes) -> bytes:
    if kind != b"IDAT" or random.random() < 0.5:
        return mutated(random, body, [body])
    return zlib.compress(mutated(random, zlib.decompress(body), [body])) if _packed(body) else body


def _packed(body: bytes) -> bool:
    try:
        zlib.decompress(body)
    except zlib.error:
        return False
    return True


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(PNG)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
