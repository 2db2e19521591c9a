"""What an embedding must know besides its pair: phrases by hand, thumbnails, and that generation does without."""

import pytest
import torch
from torch import Tensor
from training_rig import DIM, Pairs, clip

from dalle_2.errors import UsageError
from dalle_2.models.layers.side_tasks import HASH_FACTORS, PHRASE_LENGTH, SideTasks, phrases_of

CAPTIONS = [[5, 9, 7], [9, 5, 7], [4], [], [5, 9, 5, 9, 5, 9], [300, 299, 41, 17, 6]]
CLASSES = 101


def rows(captions: list[list[int]], length: int = 10, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens with begin (1), end (2) and padding, and where each row ends."""
    padded = [[1, *words, 2] + [pad] * (length - len(words) - 2) for words in captions]
    return torch.tensor(padded), torch.tensor([len(words) + 1 for words in captions])


def by_hand(words: list[int]) -> set[int]:
    """The hash classes of every one to PHRASE_LENGTH consecutive words."""
    classes = set()
    for start in range(len(words)):
        key = 0
        for length, word in enumerate(words[start : start + PHRASE_LENGTH], 1):
            key += word * HASH_FACTORS[length - 1] + length
            classes.add(key % CLASSES)
    return classes


def present(captions: list[list[int]], pad: int = 0) -> list[set[int]]:
    marks = phrases_of(*rows(captions, pad=pad), CLASSES)
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    return [set(row.nonzero().flatten().tolist()) for row in marks]


def test_phrases_are_those_counted_by_hand() -> None:
    assert present(CAPTIONS) == [by_hand(words) for words in CAPTIONS]
    assert [len(by_hand(words)) for words in CAPTIONS[:4]] == [6, 6, 1, 0]


@pytest.mark.parametrize("pad", [0, 5, 9])
def test_padding_never_counts(pad: int) -> None:
    assert present(CAPTIONS, pad=pad) == present(CAPTIONS)


def test_begin_and_end_never_count() -> None:
    tokens, words = rows([[5, 9, 7]])
    other = tokens.clone()
    other[:, 0], other[:, 4] = 77, 78
    assert torch.equal(phrases_of(tokens, words, CLASSES), phrases_of(other, words, CLASSES))


def test_the_order_of_words_counts() -> None:
    """A red circle and a blue square are not a blue circle and a red square."""
    first, second = present([[5, 9, 7, 8], [7, 9, 5, 8]])
    assert first != second


def test_the_thumbnail_is_the_picture_from_afar() -> None:
    torch.manual_seed(0)
    side = SideTasks(DIM, phrases=0, thumbnail=8)
    wanted = torch.rand(3, 3, 8, 8) * 2 - 1
    image = wanted.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    image[..., ::2] += 0.25  # what the mean of a square does not see
    image[..., 1::2] -= 0.25
    tokens, words = rows([[5], [6], [7]])
    embeddings = {"thumbnail": torch.randn(3, DIM), "thumbnail_text": torch.randn(3, DIM)}
    losses = side.losses(*embeddings.values(), image, tokens, words)
    assert losses.keys() == embeddings.keys()
    assert side.picture is not None
    for name, z in embeddings.items():
        guess = side.picture(side.scale * z).detach()
        assert float(losses[name].detach()) == pytest.approx(float((guess - wanted).square().mean()), rel=1e-5)


def test_a_thumbnail_needs_a_side_that_eight_divides() -> None:
    with pytest.raises(UsageError, match="got 12"):
        SideTasks(DIM, phrases=0, thumbnail=12)


@torch.no_grad()
def test_each_embedding_is_asked_for_the_phrases() -> None:
    torch.manual_seed(0)
    side = SideTasks(DIM, phrases=CLASSES, thumbnail=0)
    tokens, words = rows([[5, 9], [6, 7, 8]])
    z_img, z_txt = torch.randn(2, DIM), torch.randn(2, DIM)
    losses = side.losses(z_img, z_txt, torch.zeros(2, 3, 8, 8), tokens, words)
    assert side.phrases is not None
    for name, z in (("phrases_image", z_img), ("phrases_text", z_txt)):
        chance = side.phrases(side.scale * z).sigmoid()
        marks = phrases_of(tokens, words, CLASSES)
        nats = -(marks * chance.log() + (1 - marks) * (1 - chance).log()).sum() / 2
        assert float(losses[name]) == pytest.approx(float(nats), rel=1e-4)


def test_generation_does_without_them() -> None:
    model = clip()
    model.loss(Pairs().batch(range(8)))  # moves the running statistics away from their start
    model.eval()
    lean = model.without_side_tasks()
    batch = Pairs().batch(range(5))
    assert torch.equal(lean.encode_image(batch["image"]), model.encode_image(batch["image"]))
    assert torch.equal(lean.encode_text(batch["tokens"]), model.encode_text(batch["tokens"]))
    assert lean.side is None
    assert not any(name.startswith("side.") for name in lean.state_dict())
    assert model.side is not None
    assert lean.config == model.config.model_copy(update={"phrases": 0, "thumbnail": 0})
