"""Of a tokenizer's file only vocabulary and merges are read, and both are checked before the library has them."""

import gzip
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from glide_rig import ALPHABET

from dalle_2.errors import CheckpointError
from dalle_2.json_file import read_object
from dalle_2.text.glide_tokenizer import GlideTokenizer
from dalle_2.text.tokenizer import BOS, EOS, Tokenizer


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.train(["a red circle above a blue square"] * 9, vocab_size=290, context_length=12)


@pytest.fixture
def saved(ours: Tokenizer, tmp_path: Path) -> Path:
    ours.save(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def changed(path: Path, place: tuple[str | int, ...], value: Any) -> Path:
    content = json.loads(path.read_text())
    inner = content
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    return path


def test_what_else_a_file_says_changes_nothing(ours: Tokenizer, saved: Path):
    """Each of these made the library abort, panic or take gigabytes."""
    wanted = ours(["a red circle"]).tolist()
    for place, value in {
        ("padding",): {
            "strategy": {"Fixed": 2**40},
            "direction": "Right",
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "",
        },
        ("truncation",): {"max_length": 0, "strategy": "LongestFirst", "stride": 2**40, "direction": "Right"},
        ("post_processor",): {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        ("decoder",): {"type": "Strip", "content": "x", "start": 2**60, "stop": 2**60},
        ("model", "dropout"): 1.0,
        ("model", "unk_token"): "nowhere",
        ("model", "continuing_subword_prefix"): "x" * 9999,
        ("model", "byte_fallback"): True,
    }.items():
        assert Tokenizer.from_file(changed(saved, place, value))(["a red circle"]).tolist() == wanted


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("dalle_2", "bos_id"), 10**18, "can't be used: 'bos_id'"),
        (("dalle_2", "eos_id"), 5000, "names an id that no token has"),
        (("dalle_2", "pad_id"), "0", "can't be used: 'pad_id'"),
        (("dalle_2", "context_length"), 10**9, "can't be used: 'context_length'"),
        (("dalle_2", "known_words"), [1], "can't be used: 'known_words"),
        (("model", "vocab"), [], "has no vocabulary"),
        (("model", "vocab", "red"), -1, "need an id each"),
        (("model", "vocab", "red"), 10**18, "need an id each"),
        (("model", "vocab", "red"), 0, "need an id each"),
        (("model", "vocab", "red"), 1.0, "need an id each"),
        (("model", "vocab", "x" * 5000), 700, "or more than 4,096"),
        (("model", "merges", 0), ["q", "never"], "is not of two tokens that make a third"),
        (("model", "merges", 0), ["", ""], "is not of two tokens"),
        (("model", "merges", 0), "a", "is not of two tokens"),
        (("model", "type"), "Unigram", "of another kind"),
        (("model", "end_of_word_suffix"), "</x>", "of another kind"),
        (("normalizer",), {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}, "its normalizer is not"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "its pre_tokenizer is not"),
        (("added_tokens",), [{"content": ""}], "has no content"),
        (("added_tokens",), [{"content": "x"}] * 2000, "no list of at most"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(saved: Path, place: tuple[str | int, ...], value: Any, message: str):
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_file(changed(saved, place, value))


def test_ids_that_a_model_has_no_room_for_are_counted(saved: Path):
    size = Tokenizer.from_file(saved).vocab_size
    assert Tokenizer.from_file(changed(saved, ("model", "vocab", "new"), 2**20)).vocab_size == 2**20 + 1 > size


@pytest.mark.parametrize(
    "settings", ['{"model_max_length": "x"}', '{"bos_token": {"a": 1}}', '{"pad_token": [1]}', "[]"]
)
def test_settings_of_a_clips_tokenizer_that_can_not_be(tmp_path: Path, settings: str):
    tokens = [*ALPHABET, *(f"{byte}</w>" for byte in ALPHABET), BOS, EOS]
    (tmp_path / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert Tokenizer.from_clip_folder(tmp_path).context_length == 77
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_clip_folder(tmp_path)


def test_a_packed_vocabulary_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path):
    with gzip.open(tmp_path / "encoder.json.gz", "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="unpacks to over 16,777,216 bytes"):
        GlideTokenizer.from_glide_folder(tmp_path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**27


def test_a_packed_vocabulary_that_is_damaged_is_said_in_a_sentence(tmp_path: Path):
    whole = bytearray(gzip.compress(json.dumps({"a": 0}).encode()))
    for place in range(10, len(whole)):
        (tmp_path / "encoder.json.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"encoder\.json|vocab\.bpe"):
            GlideTokenizer.from_glide_folder(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    for name in ("config.json", "vocab.bpe"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_object(tmp_path / "config.json", "")
    with pytest.raises(CheckpointError, match=r"there is no file .*vocab\.bpe"):
        GlideTokenizer.from_glide_folder(tmp_path)


def test_settings_larger_than_any_are_not_read(tmp_path: Path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match="has 1,073,741,824 bytes"):
        read_object(tmp_path / "config.json", "")
