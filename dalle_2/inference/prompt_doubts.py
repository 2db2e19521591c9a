"""What is said of prompts before they are drawn: what will be cut, what no training caption said, and what can be."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from dalle_2.data.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES
from dalle_2.models.dalle2 import DALLe2
from dalle_2.models.glide import Glide
from dalle_2.text.tokenizer import Tokenizer, words_of

WORDS_SHOWN, PROMPTS_SHOWN = 12, 3
SHORTEST_SHOWN = 3  # letters; shorter words are articles and the like
ALIKE = 0.7  # "circel" and "circle" have 0.83 in common, "ball" and "small" 0.67
SHAPES_A_PICTURE = 3  # at most, in Shapes
SHAPES_WORDS = 100  # more than its captions have; a folder's may have these words among thousands
COUNTS = frozenset([
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty", "hundred",
    "thousand", "dozen", "couple", "pair", "both", "several", "many", "few",
])  # fmt: skip
NEGATIONS = frozenset(["no", "not", "none", "nothing", "never", "without", "except", "neither", "nor", "cannot"])


def prompt_warnings(pipeline: DALLe2 | Glide, prompts: Sequence[str]) -> list[str]:
    """Sentences about prompts that will be cut, words that no training caption had, and a prior that isn't there."""
    return caption_warnings(pipeline, prompts) + _prior_doubted(pipeline)


def _prior_doubted(pipeline: DALLe2 | Glide) -> list[str]:
    if not isinstance(pipeline, DALLe2) or pipeline._planned_prior is not None:
        return []
    return [
        f"pipeline {pipeline.name or 'given'} has no prior: captions go to its decoder as they are, which knows only "
        "pictures. Use a pipeline with a prior, or dalle2 variations on a picture"
    ]


def caption_warnings(pipeline: DALLe2 | Glide, prompts: Sequence[str]) -> list[str]:
    """The first two kinds of these sentences, for whoever only reads captions."""
    reader = pipeline.clip_encoder if isinstance(pipeline, DALLe2) else pipeline
    tokenizer = getattr(reader, "tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        return []
    cut = [_cut(prompt, tokenizer.room) for prompt in prompts if tokenizer.truncated(prompt)]
    return cut + (words_doubted(tokenizer, prompts) if tokenizer.known_words else [])


def words_doubted(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Sentences about what prompts say in words that no training caption had; the first says what can be said.

    For a tokenizer that knows its training's words.
    """
    unknown = list(dict.fromkeys(word for prompt in prompts for word in tokenizer.unknown_words(prompt)))
    counts = [word for word in unknown if word in COUNTS or word.isdigit()]
    negations = [word for word in unknown if word in NEGATIONS or word.endswith(("n't", "n’t"))]
    others = [word for word in unknown if word not in (*counts, *negations)]
    said = [
        *_never_seen(others, tokenizer.known_words),
        *_wordless(prompts),
        *_counted(counts),
        *_negated(negations),
        *_crowded(prompts, tokenizer.known_words),
    ]
    return [f"{said[0]}; {_sayable(others, tokenizer.known_words)}", *said[1:]] if said else []


def _never_seen(words: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    if words:
        shown = ", ".join(_hinted(word, known) for word in words[:WORDS_SHOWN])
        yield f"this pipeline never saw {shown}{', ...' if len(words) > WORDS_SHOWN else ''}"


def _hinted(word: str, known: Sequence[str]) -> str:
    near = _nearest(word, known)
    return f"{word} (did you mean {near}?)" if near else word


def _nearest(word: str, known: Sequence[str]) -> str | None:
    candidates = [one for one in known if len(one) >= SHORTEST_SHOWN]
    return next(iter(get_close_matches(word, candidates, n=1, cutoff=ALIKE)), None)


def _wordless(prompts: Sequence[str]) -> Iterator[str]:
    """Of prompts of signs and pictures alone."""
    empty = list(dict.fromkeys(prompt for prompt in prompts if not words_of(prompt)))
    if empty:
        shown = ", ".join(repr(_short(prompt)) for prompt in empty[:PROMPTS_SHOWN])
        more = ", ..." if len(empty) > PROMPTS_SHOWN else ""
        yield f"there is no word in {shown}{more} for this pipeline to go by"


def _counted(words: Sequence[str]) -> Iterator[str]:
    if words:
        said = ", ".join(words)
        yield f"this pipeline learnt no counting from its captions, which never said {said}: name each thing"


def _negated(words: Sequence[str]) -> Iterator[str]:
    if words:
        yield (
            f"this pipeline learnt no negation from its captions, which never said {', '.join(words)}, and may take "
            "what follows for wanted: say only what is to be seen, or name the rest as a negative prompt"
        )


def _crowded(prompts: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """Of more things than a picture of Shapes holds."""
    most = max((sum(word in SHAPES for word in words_of(prompt)) for prompt in prompts), default=0)
    if knows_shapes(known) and most > SHAPES_A_PICTURE:
        yield f"a prompt names {most} shapes, and no picture that this pipeline learnt from has over {SHAPES_A_PICTURE}"


def knows_shapes(known: Sequence[str]) -> bool:
    """Whether these are the words of the data set Shapes, whose captions have a grammar that can be told."""
    return {*COLOURS, *SHAPES} <= {*known} and len(known) < SHAPES_WORDS


def _sayable(unknown: Sequence[str], known: Sequence[str]) -> str:
    """What to say instead: the grammar of Shapes, else words near the unknown ones, then the most frequent ones."""
    if knows_shapes(known):
        return (
            f"it knows one to three shapes ({', '.join(SHAPES)}), each with its colour ({', '.join(COLOURS)}), "
            f"{', '.join(SIZES)} if you like, {', '.join(RELATIONS)} one another, on {', '.join(BACKGROUNDS)}"
        )
    near = [word for name in unknown[:WORDS_SHOWN] if (word := _nearest(name, known))]
    frequent = [word for word in known if len(word) >= SHORTEST_SHOWN]
    return f"words it knows: {', '.join(list(dict.fromkeys([*near, *frequent]))[:WORDS_SHOWN])}"


def _cut(prompt: str, most: int) -> str:
    return f"the prompt {_short(prompt)!r} is longer than the {most} tokens that are read: its end is cut"


def _short(prompt: str, most: int = 60) -> str:
    return prompt if len(prompt) <= most else f"{prompt[: most - 3]}..."
