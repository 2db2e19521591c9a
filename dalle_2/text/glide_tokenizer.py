"""Captions -> token ids for GLIDE: lower case, and GPT-2's way of merging bytes, with a vocabulary of its own."""

import gzip
import json
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models, normalizers, pre_tokenizers

from dalle_2.errors import CheckpointError
from dalle_2.text.tokenizer import SpecialIds, Tokenizer

VOCABULARY, MERGES = "encoder.json", "vocab.bpe"  # published with ".gz" behind them
CONTEXT = 128


class GlideTokenizer(Tokenizer):
    """Turns texts into rows `… end end` of `context_length` ids, without a start; the end token is all the padding."""

    @classmethod
    def from_glide_folder(cls, folder: str | Path, *, context_length: int = CONTEXT) -> Self:
        """Reads encoder.json and vocab.bpe, packed as they are published or unpacked.

        Raises CheckpointError for a folder that lacks one of them, and for files that hold something else.
        """
        content, lines = _read(Path(folder), VOCABULARY), _read(Path(folder), MERGES).splitlines()
        merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if left != "#version:"]
        try:
            vocabulary = json.loads(content)
            bpe = BPE(models.BPE(vocabulary, merges))
        except Exception as error:  # the library raises bare Exception
            named = f"{VOCABULARY} and {MERGES} in {folder}"
            raise CheckpointError(f"{named} are not a byte-pair vocabulary: {error}") from None
        bpe.normalizer = normalizers.Lowercase()
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        end = len(vocabulary) - 1
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
    try:
        if packed.is_file():
            return gzip.decompress(packed.read_bytes()).decode("utf-8")
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} lacks {packed.name}: copy {VOCABULARY}.gz and {MERGES}.gz of openai/glide-text2im there"
        ) from None
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{name} in {folder} can't be read: {error}") from None
