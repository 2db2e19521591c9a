"""What of a text reaches a terminal: letters, newlines and tabs. Every other code is written out, as in \\x1b.

Prompts, file names, keys of settings and names of tensors come from strangers, and a terminal obeys what it is sent: it
is given another title, lines are written over, or text is shown in another order than it has.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

# C0 but for newline and tab, DEL, C1; separators of lines and paragraphs; what turns the direction of writing; and half
# characters, which no stream takes. Joiners and variation selectors stay: emoji are made with them.
_CODES = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CODE, _CODE_OR_BREAK, _ANY_BUT_RETURN = (
    re.compile(f"[{codes}]") for codes in (_CODES, rf"\n\t{_CODES}", _CODES.replace(r"\x0b-\x1f", r"\x0b\x0c\x0e-\x1f"))
)
STANDARD_OUTPUT = "the standard output"

_returning = 0  # how many bars of others are being drawn


def shown(text: str) -> str:
    """A text as it may be written: its control codes as escapes, newlines and tabs as they are."""
    return _CODE.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """The same for what stands inside a line, where a newline would begin one that looks like ours."""
    return _CODE_OR_BREAK.sub(_escaped, text)


def json_shown(text: str) -> str:
    """JSON that says the same, with its control codes as JSON writes them: \\u001b."""
    return _CODE.sub(lambda code: f"\\u{ord(code[0]):04x}", text)


def _escaped(code: re.Match[str]) -> str:
    return code[0].encode("unicode_escape").decode()


@runtime_checkable
class Stream(Protocol):
    """What text can be written to."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


class PlainStream:
    """A text stream to which `shown` texts go. beneath: where to; of its own bytes nothing is given away.

    complains: whether an error of writing is the caller's business. Where not, as with messages, nothing more is
    written after one.
    """

    def __init__(self, beneath: Any, *, complains: bool = False) -> None:
        self.beneath, self._complains = beneath, complains

    def write(self, text: str) -> int:
        """Raises OSError where the stream complains, with its name."""
        codes = _ANY_BUT_RETURN if _returning else _CODE
        with self._failing():
            self.beneath.write(codes.sub(_escaped, text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Raises as `write`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Raises as `write`."""
        with self._failing():
            self.beneath.flush()

    def isatty(self) -> bool:
        """Whether a person watches."""
        return bool(self.beneath.isatty())

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._complains:
                raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from error
            self.beneath = _nowhere()

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "detach"):  # by which typer would write past this where it thinks it knows better
            raise AttributeError(name)
        return getattr(self.beneath, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Inside, whatever is written to the standard output and to the standard error goes through a `PlainStream`.

    A stream that is closed counts as /dev/null: nobody is told, and no file gets the number that libraries complain to.
    """
    _open_closed_ones()
    before = sys.stdin, sys.stdout, sys.stderr
    out, err = PlainStream(sys.stdout or _nowhere(), complains=True), PlainStream(sys.stderr or _nowhere())
    sys.stdin, sys.stdout, sys.stderr = sys.stdin or _nowhere("r"), out, err
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before[0], out.beneath, err.beneath


def let_go_of_output() -> None:
    """Nothing more is written to a standard output that failed: at its end a process would try it once more."""
    if isinstance(sys.stdout, PlainStream):
        sys.stdout.beneath = _nowhere()


@contextmanager
def returning() -> Iterator[None]:
    """Inside, a text may go back to the beginning of its line, as progress bars of other packages do."""
    global _returning
    _returning += 1
    try:
        yield
    finally:
        _returning -= 1


def beneath(stream: Stream) -> Any:
    """The stream itself, for what draws with codes of our own."""
    return stream.beneath if isinstance(stream, PlainStream) else stream


def may_move(stream: Stream | None) -> bool:
    """Whether somebody watches, on a screen where a line can be written over: a dumb one, as in editors, has none."""
    watched = stream is not None and stream.isatty()
    return watched and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _nowhere(mode: str = "w") -> Any:
    return open(os.devnull, mode, encoding="utf-8")  # for as long as the process lasts


def _open_closed_ones() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number: this one
