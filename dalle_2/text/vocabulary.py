"""A byte-pair vocabulary as a file says it: tokens with their ids, and which two are merged into one.

The tokenizers library ends the process, or fills the memory, for some files of its own format. So of such a file the
vocabulary and the merges alone are read, and checked here; what cuts a text into words is made by us.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as BPE
from tokenizers import models

from dalle_2 import bounds
from dalle_2.errors import CheckpointError

LONGEST = 2**12  # characters of a token
MOST_ADDED = 2**10


class Vocabulary(NamedTuple):
    """Tokens with an id each; pairs of them that are merged, the first first; tokens that stand by
    themselves in a text, and those that are no text at all."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    added: tuple[str, ...] = ()
    special: tuple[str, ...] = ()

    def bpe(self, where: str, *, suffix: str | None = None, unknown: str | None = None) -> BPE:
        """The library's encoder, which cuts nothing into words yet. suffix: at a word's end. unknown: a token.

        Raises CheckpointError, naming `where` the vocabulary came from.
        """
        named = {"end_of_word_suffix": suffix, "unk_token": unknown if unknown in self.ids else None}
        try:
            bpe = BPE(models.BPE(self.ids, self.merges, **{name: value for name, value in named.items() if value}))
            bpe.add_tokens(list(self.added))
            bpe.add_special_tokens(list(self.special))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{where} holds no byte-pair vocabulary: {str(error)[:200]}") from None
        return bpe


def vocabulary(ids: Any, merges: Iterable[Any], where: str, added: Any = ()) -> Vocabulary:
    """The checked vocabulary. added: records of tokens beside it, each with an id and whether it is special.

    Raises CheckpointError, naming `where` it came from, for one that isn't a vocabulary.
    """
    own, special = _added(added, where)
    if not isinstance(ids, Mapping):
        raise CheckpointError(f"{where} is not a tokenizer: it has no vocabulary of tokens and ids")
    every = {**ids, **own, **special}
    _check_ids(every, where)
    pairs = [_pair(merge, every, where) for merge in merges]
    return Vocabulary(every, pairs, tuple(own), tuple(special))


def _added(records: Any, where: str) -> tuple[dict[str, int], dict[str, int]]:
    """Tokens with their ids, those that are text and the special ones."""
    made: tuple[dict[str, int], dict[str, int]] = ({}, {})
    if not isinstance(records, list | tuple) or len(records) > MOST_ADDED:
        raise CheckpointError(f"{where} is damaged: its added tokens are no list of at most {MOST_ADDED}")
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("content"), str) or not record["content"].strip():
            raise CheckpointError(f"{where} is damaged: an added token has no content")
        made[record.get("special") is True][record["content"]] = record.get("id", -1)
    return made


def _check_ids(ids: Mapping[Any, Any], where: str) -> None:
    if not 1 <= len(ids) <= bounds.VOCABULARY or not all(type(token) is str for token in ids):
        raise CheckpointError(f"{where} is damaged: its vocabulary has {len(ids):,} tokens, or some that are no text")
    if any(not token or len(token) > LONGEST for token in ids):
        raise CheckpointError(f"{where} is damaged: a token has no characters, or more than {LONGEST:,}")
    known = {number for number in ids.values() if type(number) is int and 0 <= number < bounds.VOCABULARY}
    if len(known) < len(ids):
        raise CheckpointError(
            f"{where} is damaged: its {len(ids):,} tokens need an id each, from 0 to below {bounds.VOCABULARY:,}"
        )


def _pair(merge: Any, ids: Mapping[str, int], where: str) -> tuple[str, str]:
    """Two tokens, as "a b" or ["a", "b"], that make a third."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) and part in ids for part in parts):
        first, second = parts
        if first + second in ids:
            return first, second
    raise CheckpointError(f"{where} is damaged: the merge {str(merge)[:80]!r} is not of two tokens that make a third")


def text_of(path: Path, most: int) -> str:
    """A text file of at most so many bytes. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        if path.stat().st_size > most:
            raise CheckpointError(f"{path} has over {most:,} bytes, more than any vocabulary")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None


def lines_of_merges(text: str) -> list[str]:
    """The merges of a file that has one a line, below the version of its form."""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#version")]
