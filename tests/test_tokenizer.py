"""The tokenizer: our own against what any text must do, CLIP's against transformers on one vocabulary."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from dalle_2.errors import CheckpointError, DataError, UsageError
from dalle_2.text.tokenizer import BOS, EOS, Tokenizer

CAPTIONS = [
    "a small red circle above a blue square",
    "Two large green stars, left of a purple heart!",
    "on white: a red triangle",
] * 30


@cache
def trained(context_length: int = 24) -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=500, context_length=context_length)


def test_a_row_is_start_words_end_padding():
    tokenizer = trained()
    row = tokenizer(["A  small RED\tcircle"])[0].tolist()
    assert row[0] == tokenizer.bos_id
    assert row[5] == tokenizer.eos_id  # four common words are four tokens
    assert set(row[6:]) == {tokenizer.pad_id}
    assert tokenizer.decode(row) == "a small red circle"


def test_no_prompts_an_empty_prompt_and_a_long_one():
    tokenizer = trained()
    assert tokenizer([]).shape == (0, 24)
    assert tokenizer([""])[0, :2].tolist() == [tokenizer.bos_id, tokenizer.eos_id]
    long = "red " * 10_000
    assert tokenizer([long])[0, -1] == tokenizer.eos_id
    assert tokenizer.truncated(long)
    assert not tokenizer.truncated("a red circle")


def test_a_word_is_the_same_token_wherever_it_stands():
    tokenizer = trained()
    first, second = tokenizer(["red circle", "circle red"])[:, 1:3].tolist()
    assert first == second[::-1]


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8))
def test_every_text_becomes_tokens_and_comes_back(text: str):
    tokenizer = trained(context_length=128)
    row = tokenizer([text])[0]
    assert (row == tokenizer.eos_id).sum() == 1
    plain = tokenizer._bpe.normalizer.normalize_str(text)
    if "�" not in plain:
        assert tokenizer.decode(row.tolist()).split() == plain.split()


def test_special_tokens_in_a_prompt_are_text():
    tokenizer = trained()
    row = tokenizer([f"{EOS} {BOS} <|pad|>"])[0].tolist()
    assert row.count(tokenizer.bos_id) == 1
    assert row.index(tokenizer.eos_id) > 3


def test_known_and_unknown_words():
    tokenizer = trained()
    assert tokenizer.known_words[:2] == ("a", "red")
    assert tokenizer.unknown_words("A red DRAGON, a dragon and a circle") == ["dragon", "and"]
    assert tokenizer.unknown_words("") == []


def test_a_saved_tokenizer_is_the_same_and_so_is_one_trained_again(tmp_path: Path):
    for name in ("a.json", "b.json"):
        trained.__wrapped__().save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    before, after = trained(), Tokenizer.from_file(tmp_path / "a.json")
    assert torch.equal(after(CAPTIONS[:3]), before(CAPTIONS[:3]))
    assert after.known_words == before.known_words
    assert (after.vocab_size, after.context_length, after.pad_id) == (before.vocab_size, 24, before.pad_id)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ("[1]", "expected a JSON object"),
        ("{}", "no 'dalle_2' entry"),
        ('{"dalle_2": {"bos_id": 1}}', "'eos_id' is missing"),
        (
            '{"dalle_2": {"bos_id": 1, "eos_id": 2, "pad_id": 0, "context_length": 9, "known_words": []}}',
            "is not a tokenizer",
        ),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: str, message: str):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_file(path)


def test_a_missing_file_and_a_folder_without_tokenizer(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        Tokenizer.from_clip_folder(tmp_path)


def test_captions_that_can_not_be_learned_from():
    with pytest.raises(DataError, match="no captions with words"):
        Tokenizer.train(["", "  "])
    with pytest.raises(UsageError, match="at least 259"):
        Tokenizer.train(CAPTIONS, vocab_size=100)
    with pytest.raises(UsageError, match="context_length"):
        Tokenizer.train(CAPTIONS, context_length=1)


def clip_vocabulary(folder: Path) -> None:
    """A small vocabulary in OpenAI's form: bytes, bytes at a word's end, a few merges, two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("r", "e"),
        ("re", "d</w>"),
        ("c", "i"),
        ("ci", "r"),
        ("i", "t</w>"),
        ("'", "s</w>"),
        ("!", "!</w>"),
    ]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges), BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    start = {"__type": "AddedToken", "content": BOS, "special": True}
    settings = {"model_max_length": 20, "bos_token": start, "eos_token": EOS, "pad_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


PROMPTS = [
    "A red circle!!",
    "it's 42 x12",
    "",
    "naïve  Käse 東京 🎉",
    "red " * 40,
    "don't 're' \n\tall-in-one... ()",
]


def test_clips_tokenizer_agrees_with_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    clip_vocabulary(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ours = Tokenizer.from_clip_folder(tmp_path)
    expected = theirs(PROMPTS, padding="max_length", truncation=True, max_length=20)["input_ids"]
    assert ours(PROMPTS).tolist() == expected
    assert ours.pad_id == ours.eos_id
    assert ours.known_words == ()
    assert ours.unknown_words("dragon") == []

    fast = tmp_path / "fast"
    theirs.save_pretrained(fast)
    (fast / "vocab.json").unlink(missing_ok=True)
    assert Tokenizer.from_clip_folder(fast, context_length=20)(PROMPTS).tolist() == expected


def test_a_clip_vocabulary_without_an_end_token(tmp_path: Path):
    clip_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(CheckpointError, match="lacks </s>"):
        Tokenizer.from_clip_folder(tmp_path)
