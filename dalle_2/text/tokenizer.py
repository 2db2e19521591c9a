"""Captions <-> token ids: a byte-pair encoding of our own, or the one of a CLIP folder.

Our own lower-cases, splits at white space and punctuation, and falls back to bytes: no text is unknown.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE
from torch import Tensor

from dalle_2 import bounds
from dalle_2.config import describe
from dalle_2.errors import CheckpointError, DataError, UsageError
from dalle_2.json_file import MOST_BYTES, read_object
from dalle_2.paths import atomic_write_text
from dalle_2.text.vocabulary import lines_of_merges, text_of, vocabulary

E = TypeVar("E", bound=BaseModel)

PAD, BOS, EOS = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # behind the last bytes of a word in CLIP's vocabulary
KNOWN_WORDS = 20_000
CLIP_CONTEXT = 77
# Our own entry in tokenizer.json; everything else in the file is the tokenizers library's format.
OWN_KEY = "dalle_2"
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# The pattern by which OpenAI's CLIP cuts a text into words, without its special tokens.
CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class SpecialIds(NamedTuple):
    bos: int
    eos: int
    pad: int


TokenId = Annotated[int, Field(ge=0, le=bounds.VOCABULARY)]


class OwnEntry(BaseModel):
    """What our own entry in tokenizer.json says."""

    model_config = ConfigDict(strict=True)

    bos_id: TokenId
    eos_id: TokenId
    pad_id: TokenId
    context_length: int = Field(ge=2, le=bounds.CONTEXT)
    known_words: list[str] = Field(max_length=KNOWN_WORDS)


TokenName = Annotated[str, Field(max_length=256)]


class NamedToken(BaseModel):
    """A token as a record."""

    content: TokenName


class ClipEntry(BaseModel):
    """What is read of tokenizer_config.json: special tokens, by name or as records, and how long a row is."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())

    bos_token: TokenName | NamedToken | None = None
    eos_token: TokenName | NamedToken | None = None
    pad_token: TokenName | NamedToken | None = None
    model_max_length: float | None = Field(None, ge=2)

    @property
    def tokens(self) -> dict[str, str]:
        """Those that are named."""
        named = {"bos": self.bos_token, "eos": self.eos_token, "pad": self.pad_token}
        plain = {name: token.content if isinstance(token, NamedToken) else token for name, token in named.items()}
        return {name: token for name, token in plain.items() if token}


class Tokenizer:
    """Turns texts into rows `BOS … EOS pad pad` of `context_length` ids."""

    def __init__(self, bpe: BPE, *, special: SpecialIds, context_length: int, known_words: Iterable[str] = ()) -> None:
        if context_length < 2:
            raise UsageError(f"context_length must be at least 2, one start and one end token, got {context_length}")
        bpe.no_truncation()
        bpe.no_padding()
        # "<|endoftext|>" inside a prompt is text, never a command.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self.bos_id, self.eos_id, self.pad_id = special
        self.context_length = context_length
        # Ids from 0 to below this: what a model must know, also where some between stand for nothing.
        self.vocab_size = 1 + max(bpe.get_vocab(with_added_tokens=True).values(), default=-1)
        self.known_words: tuple[str, ...] = tuple(known_words)
        self._known = frozenset(self.known_words)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 4096, context_length: int = 32) -> Self:
        """Learns a vocabulary of at most `vocab_size` tokens; words that are common enough become one token.

        Raises DataError if no caption has a word, UsageError if `vocab_size` leaves no room for the bytes.
        """
        least = 256 + 3
        if vocab_size < least:
            raise UsageError(f"vocab_size must be at least {least}, 256 bytes and 3 special tokens, got {vocab_size}")
        counts: Counter[str] = Counter()
        bpe = _empty_bpe()
        bpe.train_from_iterator(_counted(captions, counts), _trainer(vocab_size))
        if not counts:
            raise DataError("there are no captions with words to learn a vocabulary from: give at least one")
        # Equal counts in alphabetical order, so that the same captions in another order give the same list.
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[:KNOWN_WORDS]
        return cls(bpe, special=SpecialIds(1, 2, 0), context_length=context_length, known_words=ranked)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads a file that `save` wrote. Raises CheckpointError if it is missing or something else."""
        content = _read_json(Path(path))
        own = content.pop(OWN_KEY, None)
        if own is None:
            raise CheckpointError(f"{path} is not a tokenizer of this package: it has no {OWN_KEY!r} entry")
        entry = _parsed(OwnEntry, own, f"its {OWN_KEY!r} entry", Path(path))
        bpe = _parse(content, Path(path))
        special = SpecialIds(entry.bos_id, entry.eos_id, entry.pad_id)
        if any(bpe.id_to_token(number) is None for number in special):
            raise CheckpointError(f"{path} is damaged: its {OWN_KEY!r} entry names an id that no token has")
        return cls(bpe, special=special, context_length=entry.context_length, known_words=entry.known_words)

    @classmethod
    def from_clip_folder(cls, folder: str | Path, *, context_length: int | None = None) -> Self:
        """Reads the tokenizer of a CLIP folder in the Hugging Face layout, without network.

        context_length: the model's; by default what the tokenizer's settings say.
        Raises CheckpointError if the folder holds neither tokenizer.json nor vocab.json and merges.txt.
        """
        folder = Path(folder)
        bpe, settings = _clip_bpe(folder), _clip_settings(folder / "tokenizer_config.json")
        tokens = {"bos": BOS, "eos": EOS, "pad": EOS} | settings.tokens
        missing = [token for token in tokens.values() if bpe.token_to_id(token) is None]
        if missing:
            raise CheckpointError(f"the vocabulary in {folder} lacks {', '.join(sorted(set(missing)))}")
        special = SpecialIds(*(bpe.token_to_id(tokens[name]) or 0 for name in ("bos", "eos", "pad")))
        # 77 is CLIP's own; tokenizers without a limit store 1e30.
        stated = int(settings.model_max_length or CLIP_CONTEXT)
        length = context_length or (stated if stated < 10_000 else CLIP_CONTEXT)
        return cls(bpe, special=special, context_length=length)

    def __call__(self, texts: list[str]) -> Int[Tensor, "n {self.context_length}"]:
        """One row a text; a text too long for `context_length` loses its end and keeps EOS."""
        rows = [self._row(encoding.ids) for encoding in self._bpe.encode_batch(texts, add_special_tokens=False)]
        return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(len(texts), self.context_length)

    def _row(self, ids: list[int]) -> list[int]:
        row = [self.bos_id, *ids[: self.room], self.eos_id]
        return row + [self.pad_id] * (self.context_length - len(row))

    @property
    def room(self) -> int:
        """How many tokens of a text a row has room for."""
        return self.context_length - 2

    def truncated(self, text: str) -> bool:
        """True if `text` does not fit into `context_length`."""
        return len(self._bpe.encode(text, add_special_tokens=False).ids) > self.room

    def decode(self, ids: Iterable[int]) -> str:
        """The text of one row, without special tokens, up to the first EOS."""
        words = []
        for i in ids:
            if i == self.eos_id:
                break
            words.append(int(i))
        return self._bpe.decode(words, skip_special_tokens=True).strip()

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that no training caption had, each once; none for a borrowed vocabulary."""
        if not self.known_words:
            return []
        return [word for word in dict.fromkeys(words_of(text)) if word not in self._known]

    def save(self, path: str | Path) -> None:
        """Writes one JSON file that `from_file` reads."""
        own = {
            "context_length": self.context_length,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "known_words": list(self.known_words),
        }
        content = {OWN_KEY: own, **json.loads(self._bpe.to_str())}
        atomic_write_text(path, json.dumps(content, ensure_ascii=False, indent=1))

    def library_json(self) -> str:
        """What the tokenizers library writes of it."""
        return str(self._bpe.to_str())

    def token(self, index: int) -> str:
        """The token of that id. Raises UsageError for an id that is none."""
        token = self._bpe.id_to_token(index)
        if token is None:
            raise UsageError(f"the vocabulary has no token {index}")
        return str(token)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters; an accent that is a character of its own belongs to its letter."""
    return WORD.findall(unicodedata.normalize("NFC", text).lower())


def _counted(captions: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    for caption in captions:
        counts.update(words_of(caption))
        yield caption


def _empty_bpe() -> BPE:
    return _cut_as_ours(BPE(models.BPE()))


def _cut_as_ours(bpe: BPE) -> BPE:
    bpe.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    # The leading space makes a word the same token at the start of a caption as inside it.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _cut_as_clip(bpe: BPE) -> BPE:
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return bpe


def _trainer(vocab_size: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def _clip_bpe(folder: Path) -> BPE:
    """CLIP's tokenizer from either form that the hub's folders hold."""
    if (folder / "tokenizer.json").exists():
        return _parse(_read_json(folder / "tokenizer.json"), folder / "tokenizer.json")
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.exists() and merges.exists()):
        raise CheckpointError(f"{folder} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt")
    where = f"{vocab} with {merges.name}"
    ids, lines = _read_json(vocab), lines_of_merges(text_of(merges, MOST_BYTES))
    known = vocabulary(ids, lines, where)
    special = tuple(token for token in (BOS, EOS) if token in known.ids)
    return _cut_as_clip(known._replace(special=special).bpe(where, suffix=WORD_END, unknown=EOS))


def _clip_settings(path: Path) -> "ClipEntry":
    return _parsed(ClipEntry, _read_json(path) if path.exists() else {}, "what it says", path)


def _parsed(cls: type[E], values: Any, called: str, path: Path) -> E:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {called} can't be used: {describe(error)}") from None


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path, f"there is no file {path}")


def _parse(content: dict[str, Any], path: Path) -> BPE:
    """The vocabulary and the merges of a file in the library's format, cut into words as we or CLIP do it.

    Raises CheckpointError for a file that says otherwise.
    """
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    suffix = model.get("end_of_word_suffix") or None
    if model.get("type", "BPE") != "BPE" or suffix not in CUTS:
        raise CheckpointError(f"{path} is a tokenizer of another kind: expected the byte pairs of this package or CLIP")
    wanted, cut = CUTS[suffix]
    for part, kinds in wanted.items():
        if part in content and set(_kinds(content[part])) != kinds:
            raise CheckpointError(
                f"{path} is a tokenizer of another kind: its {part} is not {', '.join(sorted(kinds))}"
            )
    merges = model.get("merges")
    added = content.get("added_tokens") or ()
    known = vocabulary(model.get("vocab"), merges if isinstance(merges, list) else [], str(path), added)
    return cut(known.bpe(str(path), suffix=suffix, unknown=EOS if suffix else None))


def _kinds(part: Any) -> list[str]:
    """What a part of the library's format is made of, whether it is one or a row of them."""
    if not isinstance(part, dict):
        return []
    row = part.get("normalizers", part.get("pretokenizers", [part]))
    return [str(one.get("type"))[:40] for one in row if isinstance(one, dict)] if isinstance(row, list) else []


# What cuts a text into words, by what stands at a word's end in the vocabulary: ours, and CLIP's.
CUTS: Mapping[str | None, tuple[Mapping[str, set[str]], Callable[[BPE], BPE]]] = {
    None: (
        {"normalizer": {"NFC", "Lowercase", "Replace", "Strip"}, "pre_tokenizer": {"ByteLevel"}}, _cut_as_ours,
    ),
    WORD_END: (
        {"normalizer": {"NFC", "Replace", "Lowercase"}, "pre_tokenizer": {"Split", "ByteLevel"}}, _cut_as_clip,
    ),
}  # fmt: skip
