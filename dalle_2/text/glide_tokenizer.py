"""Captions -> token ids for GLIDE: lower case, and GPT-2's way of merging bytes, with a vocabulary of its own."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Self

from tokenizers import decoders, normalizers, pre_tokenizers

from dalle_2.errors import CheckpointError
from dalle_2.text.tokenizer import SpecialIds, Tokenizer
from dalle_2.text.vocabulary import lines_of_merges, text_of, vocabulary

VOCABULARY, MERGES = "encoder.json", "vocab.bpe"  # published with ".gz" behind them
CONTEXT = 128
MOST_BYTES = 2**24  # unpacked; those published have a million


class GlideTokenizer(Tokenizer):
    """Turns texts into rows `… end end` of `context_length` ids, without a start; the end token is all the padding."""

    @classmethod
    def from_glide_folder(cls, folder: str | Path, *, context_length: int = CONTEXT) -> Self:
        """Reads encoder.json and vocab.bpe, packed as they are published or unpacked.

        Raises CheckpointError for a folder that lacks one of them, and for files that hold something else.
        """
        named = f"{VOCABULARY} with {MERGES} in {folder}"
        content, merges = _read(Path(folder), VOCABULARY), lines_of_merges(_read(Path(folder), MERGES))
        try:
            ids = json.loads(content)
        except (ValueError, RecursionError, MemoryError) as error:
            raise CheckpointError(f"{named} are not a byte-pair vocabulary: {error}") from None
        known = vocabulary(ids, merges, named)
        bpe = known.bpe(named)
        bpe.normalizer = normalizers.Lowercase()
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        end = max(known.ids.values())
        return cls(bpe, special=SpecialIds(end, end, end), context_length=context_length)

    @property
    def room(self) -> int:
        """How many tokens of a text a row has room for."""
        return self.context_length

    def _row(self, ids: list[int]) -> list[int]:
        row = ids[: self.room]
        return row + [self.pad_id] * (self.context_length - len(row))


def _read(folder: Path, name: str) -> str:
    """A text file, or the one of that name with ".gz" behind it."""
    packed = folder / f"{name}.gz"
    if packed.is_file():
        return _unpacked(packed)
    if not (folder / name).exists():
        raise CheckpointError(
            f"{folder} lacks {packed.name}: copy {VOCABULARY}.gz and {MERGES}.gz of openai/glide-text2im there"
        )
    return text_of(folder / name, MOST_BYTES)


def _unpacked(path: Path) -> str:
    """What is packed in a file, up to what a vocabulary can have: a few bytes can hold gigabytes of one letter."""
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise CheckpointError(f"{path} unpacks to over {MOST_BYTES:,} bytes, more than any vocabulary")
        return content.decode("utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
