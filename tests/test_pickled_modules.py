"""Pickles of modules take no more than they hold, and leave nothing behind."""

import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle_2.errors import CheckpointError
from dalle_2.weights.pickled_module import module_tensors

RECORD = b"cdall_e.layers\nThing\n"
VIEW = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(words: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(words)) + words.encode()


def number(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def row(*values: bytes) -> bytes:
    return pickle.MARK + b"".join(values) + pickle.TUPLE


def table(**values: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in values.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def record(state: bytes) -> bytes:
    return RECORD + pickle.EMPTY_TUPLE + pickle.NEWOBJ + state + pickle.BUILD


def module(*, modules: bytes = pickle.EMPTY_DICT, **tensors: bytes) -> bytes:
    return record(table(_parameters=table(**tensors), _buffers=pickle.EMPTY_DICT, _modules=modules))


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    place = row(text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(count)) + pickle.BINPERSID
    sides = (row(*map(number, numbers)) for numbers in (size, stride))
    return VIEW + row(place, number(offset), *sides, pickle.NEWFALSE, pickle.NONE) + pickle.REDUCE


def archive(path: Path, code: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.PROTO + b"\2" + code + pickle.STOP)
        file.writestr("archive/data/0", torch.arange(4.0).numpy().tobytes())
    return path


def refused(path: Path) -> int:
    """The bytes that were taken before the file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="truncated, damaged or no module of torch.save"):
            module_tensors(path, ("dall_e",))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_numbers_come_from_where_the_file_says(tmp_path: Path):
    inner = module(w=tensor((2,), (2,), 1))
    path = archive(tmp_path / "x.pkl", module(v=tensor((2, 2), (2, 1)), modules=table(a=inner)))
    made = module_tensors(path, ("dall_e",))
    assert {name: value.tolist() for name, value in made.items()} == {"v": [[0, 1], [2, 3]], "a.w": [1, 3]}


def test_a_tensor_that_repeats_one_number_is_no_larger_than_that_number(tmp_path: Path):
    path = archive(tmp_path / "x.pkl", module(w=tensor((2**15, 2**15), (0, 0))))
    assert module_tensors(path, ("dall_e",))["w"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    "code",
    [
        pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x1f",  # the reader in C makes room for 2^29 objects
        pickle.BYTEARRAY8 + struct.pack("<Q", 2**33),
        pickle.BINUNICODE + b"\xff\xff\xff\x7f",
        pickle.LONG4 + b"\xff\xff\xff\x7f",
        pickle.BINBYTES8 + struct.pack("<Q", 2**40),
        pickle.FRAME + struct.pack("<Q", 2**40),
        module(w=tensor((5,), (1,))),
        module(w=tensor((1,) * 9, (1,) * 9)),
        module(w=tensor((2,), (-1,), 3)),
        pickle.EMPTY_DICT + pickle.NONE + pickle.NONE + pickle.SETITEM,
    ],
)
def test_a_few_bytes_take_no_memory(tmp_path: Path, code: bytes):
    assert refused(archive(tmp_path / "x.pkl", code)) < 2**20


def test_parts_within_parts_that_are_the_same_are_counted(tmp_path: Path):
    code = module() + pickle.BINPUT + b"\0"
    for _ in range(60):  # 2^60 of them
        code = (
            code
            + pickle.BINPUT
            + b"\0"
            + module(modules=table(a=pickle.BINGET + b"\0", b=pickle.BINGET + b"\0"))
            + pickle.BINPUT
            + b"\0"
        )
    assert refused(archive(tmp_path / "x.pkl", code)) < 2**24


def test_keys_of_tuples_in_tuples_are_not_hashed(tmp_path: Path):
    key = number(1) + b"".join(pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2 for _ in range(64))
    refused(archive(tmp_path / "x.pkl", pickle.EMPTY_DICT + key + pickle.NONE + pickle.SETITEM))
    refused(archive(tmp_path / "x.pkl", row(text("storage"), b"ctorch\nFloatStorage\n", key) + pickle.BINPERSID))


def test_a_container_is_not_copied_again_and_again(tmp_path: Path):
    many = pickle.EMPTY_LIST + pickle.MARK + b"".join(map(number, range(2**14))) + pickle.APPENDS
    again = b"c__builtin__\nset\n" + pickle.BINGET + b"\0" + pickle.TUPLE1 + pickle.REDUCE
    refused(archive(tmp_path / "x.pkl", many + pickle.BINPUT + b"\0" + again * 9))


@pytest.mark.parametrize(
    "code",
    [
        RECORD + table(_parameters=pickle.NONE) + pickle.BUILD,  # attributes of the class
        VIEW + pickle.NONE + table(__defaults__=row(number(1))) + pickle.TUPLE2 + pickle.BUILD,  # and of a function
        RECORD + pickle.NONE + table(__init__=number(1)) + pickle.TUPLE2 + pickle.BUILD,
        b"ccollections\nOrderedDict\n" + table(get=number(1)) + pickle.BUILD,
    ],
)
def test_a_refused_file_leaves_nothing_behind(tmp_path: Path, code: bytes):
    refused(archive(tmp_path / "bad.pkl", code))
    good = archive(tmp_path / "good.pkl", module(w=tensor((4,), (1,))))
    assert module_tensors(good, ("dall_e",))["w"].tolist() == [0, 1, 2, 3]


def test_a_row_of_pickles_that_claims_more_numbers_than_it_has_is_refused(tmp_path: Path):
    def said(value: Any) -> bytes:
        return pickle.dumps(value, 2)

    root = pickle.PROTO + b"\2" + module(w=tensor((4,), (1,))) + pickle.STOP
    head = said(0x1950A86A20F9469CFC6C) + said(1001) + said({"little_endian": True}) + root + said(["0"])
    numbers = torch.arange(4.0).numpy().tobytes()
    (tmp_path / "good.pkl").write_bytes(head + struct.pack("<q", 4) + numbers)
    assert module_tensors(tmp_path / "good.pkl", ("dall_e",))["w"].tolist() == [0, 1, 2, 3]
    for count in (-1, 5, 2**40):
        (tmp_path / "bad.pkl").write_bytes(head + struct.pack("<q", count) + numbers)
        assert refused(tmp_path / "bad.pkl") < 2**22
