"""Ways to damage bytes, JSON and tables of settings. All randomness is passed in."""

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from hostile.harness import CANARY

NUMBERS = [0, -1, 1, 2, 3, 7, 255, 10**6, 10**18, 2**31 - 1, 2**63, 10**400, -(10**9), 0.5, 1e308, -1e308, 1e-300]
ODD = [float("nan"), float("inf"), None, True, False, "", "9", "\0", "\ud800", "../../etc", "x" * 5000, [], {}, [[]]]
RAW = "@raw "  # a string that begins so stands for JSON that Python can't hold or write


def damaged(random: Random, data: bytes) -> bytes:
    """Bytes with one to a few faults."""
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        data = random.choice(FAULTS)(random, data)
    return data


def _flipped(random: Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(random.choice([1, 1, 3, 20])):
        if made:
            made[random.randrange(len(made))] ^= 1 << random.randrange(8)
    return bytes(made)


def _truncated(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _spliced(random: Random, data: bytes) -> bytes:
    start, length = random.randrange(len(data) + 1), random.choice([1, 4, 16, 200])
    place = random.randrange(len(data) + 1)
    return data[:place] + data[start : start + length] + data[place + random.choice([0, length]) :]


def _numbered(random: Random, data: bytes) -> bytes:
    """A length or another number in its place, among the first bytes more often than not."""
    width = random.choice([1, 2, 4, 8])
    value = random.choice([0, 1, 2**7, 2**15, 2**24, 2**31 - 1, 2**31, 2**40, 2**62, 2**64 - 1]) % 2 ** (8 * width)
    place = random.randrange(max(1, min(len(data), random.choice([16, 200, len(data) or 1]))))
    return data[:place] + value.to_bytes(width, random.choice(["little", "big"])) + data[place + width :]


def _repeated(random: Random, data: bytes) -> bytes:
    start, length = random.randrange(len(data) + 1), random.choice([1, 4, 30])
    return data[:start] + data[start : start + length] * random.choice([2, 50, 3000]) + data[start + length :]


FAULTS: list[Callable[[Random, bytes], bytes]] = [_flipped, _truncated, _spliced, _numbered, _repeated]


def changed(random: Random, value: Any) -> Any:
    """A copy of plain values with one to a few of them changed: hostile numbers, other types, keys gone or new."""
    made = copy.deepcopy(value)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        places = list(_places(made))
        if places:
            _change(random, *random.choice(places))
    return made


def as_json(random: Random, value: Any) -> bytes:
    """As text, with nests that no library writes, and keys that come twice."""
    if random.random() < 0.1:
        places = list(_places(value))
        if places:
            inner, key = random.choice(places)
            inner[key] = RAW + random.choice(["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "1e999", "1" * 5000])
    text = json.dumps(value, ensure_ascii=random.random() < 0.8)
    if RAW in text:
        start = text.index('"' + RAW)
        end = text.index('"', start + 1 + len(RAW))
        raw = {"[": "[" * 100_000, "{": '{"a":' * 5000 + "1" + "}" * 5000}
        text = text[:start] + raw.get(text[start + 1 + len(RAW)], "1" * 5000) + text[end + 1 :]
    if random.random() < 0.05:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """Every place in nested lists and tables, as what holds it and its key."""
    left = [value]
    while left:
        inner = left.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else []
        for key in keys:
            yield inner, key
            left.append(inner[key])


def _change(random: Random, inner: Any, key: Any) -> None:
    value = inner[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    way = random.random()
    if way < (0.7 if number else 0.3):
        inner[key] = random.choice(NUMBERS)
    elif way < 0.75:
        inner[key] = random.choice(ODD)
    elif way < 0.85:
        inner.pop(key)
    elif way < 0.9 and isinstance(inner, dict):
        inner[f"{key}{random.choice(['', '_', 'x' * 300])}x"] = inner.pop(key)
    elif isinstance(value, list) and value:
        inner[key] = value * random.choice([0, 2, 1000 if len(value) < 100 else 3])
    elif isinstance(inner, dict):
        inner[random.choice(list(inner))] = copy.deepcopy(value)
    else:
        inner[key] = [[[[value]]]]


def packed(data: bytes, random: Random) -> bytes:
    """An archive whose entries are packed, one of them very large."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        large = random.choice(names)
        for name in names:
            new.writestr(name, bytes(2**24) if name == large else old.read(name))
    return made.getvalue()


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def evil_code(random: Random, folder: Path) -> bytes:
    """A pickle that would touch the canary, in one of the ways that a pickle can call something."""
    name = str(folder / CANARY)
    code = f"__import__('pathlib').Path({name!r}).touch()"
    return random.choice(
        [
            pickle.dumps(Evil(folder / CANARY), random.choice([0, 2, 4])),
            f"cbuiltins\nexec\n(V{code}\ntR.".encode(),
            f"(ibuiltins\neval\nV{code}\n.".encode(),
            f"(cbuiltins\neval\nV{code}\no.".encode(),
            f"c__builtin__\neval\n(V{code}\ntR.".encode(),
            f"cos\nmknod\n(V{name}\ntR.".encode(),
            f"cpathlib\nPath\n(V{name}\ntR(lbcoperator\nmethodcaller\n(Vtouch\ntR.".encode(),
        ]
    )


def with_evil(data: bytes, random: Random, folder: Path) -> bytes:
    """An archive of torch.save whose pickle is another one, or such a pickle alone."""
    code = evil_code(random, folder)
    if random.random() < 0.3:
        return code
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, code if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def with_damaged_pickle(data: bytes, random: Random) -> bytes:
    """An archive of torch.save with faults in its pickle alone, so that it is found."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, damaged(random, old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()
