"""A pickle's objects as bare records, read without running any of it and without taking more than it holds.

Of the pickle machine there is only what torch.save writes. What a class or a function is named for is not looked up;
objects that could be grown out of a few bytes are counted; and nothing of a file is left behind in this process.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch

DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
}  # fmt: skip
# The opcodes of protocol 2, which torch.save writes, and those of text that Python 2 wrote.
OPCODES = (
    pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1,
    pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.BINSTRING, pickle.SHORT_BINSTRING,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND,
    pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.BINPUT, pickle.LONG_BINPUT,
    pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD, pickle.BINPERSID,
)  # fmt: skip
MOST_COPIED = 2**16  # items that a file may have copied from one container into another, all in all
MOST_SIDES = 8  # of a tensor


class Storage(NamedTuple):
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: torch.dtype


class View(NamedTuple):
    """A tensor over them."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Refused(pickle.UnpicklingError):
    """A name that a network has no use for."""


class Reader(pickle._Unpickler):
    """Builds records, views and plain containers, and nothing else.

    The library's own reader in Python, whose memory grows with what is put into it; the one in C makes room for what a
    file says it will put there.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, packages: tuple[str, ...]) -> None:
        super().__init__(file, encoding="utf-8")
        self.packages = ("torch.nn.modules", *packages)
        # A class of this file alone: what it does to it is gone with it.
        self.record = type("Record", (), {})
        self.copied = 0
        self.plain = {
            ("collections", "OrderedDict"): self._ordered, ("builtins", "set"): self._names,
            ("__builtin__", "set"): self._names, ("torch", "device"): _nothing,
            ("torch._utils", "_rebuild_tensor_v2"): _view, ("torch._utils", "_rebuild_parameter"): _parameter,
        }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the file; nothing is imported."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if any(module == package or module.startswith(f"{package}.") for package in self.packages):
            return self.record
        if (module, name) in self.plain:
            return self.plain[module, name]
        raise Refused(f"{module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or in old files a class with its source, which is not read."""
        if not isinstance(pid, tuple) or len(pid) < 3:
            raise ValueError("a place of numbers is not said as it should be")
        if pid[0] == "module":
            return pid[1]
        dtype, key = pid[1:3]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str | int):
            raise ValueError("a place of numbers is not said as it should be")
        return Storage(str(key), dtype)

    def load_build(self) -> None:
        """Attributes of a record, and of nothing else; a dict in order has some that nobody needs."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, OrderedDict):
            return
        if type(made) is not self.record or not isinstance(state, dict):
            raise ValueError("attributes are given to what has none")
        vars(made).update(_named(state))

    def load_setitem(self) -> None:
        """One entry of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_named({_key(key): value}))

    def load_setitems(self) -> None:
        """Several entries."""
        items = self.pop_mark()
        self.stack[-1].update({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def load_newobj(self) -> None:
        """A new record."""
        self.stack.pop()
        if self.stack[-1] is not self.record:
            raise ValueError("it makes what is no part of a network")
        self.stack[-1] = self.record()

    def load_reduce(self) -> None:
        """What one of the few functions gives, or a record."""
        arguments, made = self.stack.pop(), self.stack[-1]
        if made is self.record:
            self.stack[-1] = self.record()
        elif any(made == known for known in self.plain.values()):
            self.stack[-1] = made(*arguments)
        else:
            raise ValueError("it calls what can't be called")

    def _ordered(self, pairs: Any = ()) -> OrderedDict[str, Any]:
        self._count(pairs)
        return OrderedDict((_key(key), value) for key, value in pairs)

    def _names(self, names: Any = ()) -> set[Any]:
        self._count(names)
        return {_key(name) for name in names}

    def _count(self, items: Any) -> None:
        self.copied += len(items)
        if self.copied > MOST_COPIED:
            raise ValueError("it copies more than a network has")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES},
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.REDUCE[0]: load_reduce,
    }


def _named(state: Mapping[Any, Any]) -> dict[str, Any]:
    return {_key(key): value for key, value in state.items()}


def _key(key: Any) -> Any:
    """A key as it is; one of tuples in tuples could take years to be hashed."""
    if isinstance(key, str | int):
        return key
    raise ValueError(f"a key is a {type(key).__name__}")


def _view(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> View:
    if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > MOST_SIDES:
        raise ValueError("a tensor is not said as it should be")
    if not all(isinstance(number, int) and 0 <= number < 2**62 for number in (offset, *size, *stride)):
        raise ValueError("a tensor's sides are not said as they should be")
    return View(storage, offset, tuple(size), tuple(stride))


def _parameter(view: View, *_: Any) -> View:
    return view


def _nothing(*_: Any) -> None:
    return None
