"""The procedural data set: what it draws, what it says, and what it keeps apart."""

import hashlib
import math
import random
import re
from itertools import combinations

import numpy as np
import pytest

from dalle_2.data.abs_dataset import AbsDataset
from dalle_2.data.captions import SIZE_WORDS, describe
from dalle_2.data.render import coverage, render
from dalle_2.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_KINDS,
    HELD_OUT_PAIRINGS,
    INVERSE,
    RADII,
    RELATIONS,
    SEEN_KINDS,
    SHAPES,
    SIZES,
    SPLITS,
    Kind,
    Scene,
    SceneObject,
    clearly_related,
    differences,
    is_valid,
    mutate,
    relation,
    sample_scene,
    split_of,
)
from dalle_2.data.shapes import Shapes, fixed_scenes
from dalle_2.errors import UsageError
from dalle_2.evaluation.exact_match import judge

RED_ABOVE_BLUE = Scene(
    "white",
    (
        SceneObject("red", "circle", "small", 0.5, 0.25, 0.1),
        SceneObject("blue", "square", "large", 0.45, 0.7, 0.19),
    ),
)


def test_an_example_follows_from_its_number_alone() -> None:
    forwards, backwards = Shapes(32, length=20, siblings=2), Shapes(32, length=5000, siblings=2)
    seen = [forwards[i] for i in range(20)]
    for i in reversed(range(20)):
        image, caption = backwards[i]
        assert caption == seen[i].caption
        assert np.array_equal(image, seen[i].image)
    assert isinstance(forwards, AbsDataset)
    assert len(backwards) == 5000
    assert seen[0].image.shape == (32, 32, 3)
    assert seen[0].image.dtype == np.uint8


def test_no_hash_seed_reaches_the_scenes() -> None:
    """The captions of the first examples, as every machine must draw them."""
    captions = "\n".join(Shapes(length=50, siblings=3)[i].caption for i in range(50))
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == "427c8b5bc692a864"


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "seen"}])
def test_other_seeds_and_splits_give_other_scenes(other: dict) -> None:
    ours, theirs = Shapes(length=50), Shapes(length=50, **other)
    assert not {ours.scene(i)[0] for i in range(50)} & {theirs.scene(i)[0] for i in range(50)}


def test_an_example_can_be_drawn_at_another_size() -> None:
    shapes = Shapes(64, length=30)
    for i in range(30):
        small, large = shapes[i].image.astype(float), shapes.image(i, 256).astype(float)
        averaged = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.abs(averaged - small).mean() < 0.5
        assert np.abs(averaged - small).max() < 64  # corners, where distance and area differ


AREAS = {
    "circle": math.pi,
    "square": 1.76**2,
    "triangle": 1.86**2 / math.sqrt(3),
    "diamond": 2 * 1.12**2,
    "star": 5 * 1.15 * 0.54 * math.sin(math.pi / 5),
    "cross": 4 * 1.02 * 0.72 - 0.72**2,
    "heart": 2 * 0.9**2 + math.pi * 0.9**2 / 2,
    "ring": math.pi * (1.03**2 - 0.55**2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_area(shape: str) -> None:
    places = np.arange(-130, 130, dtype=np.float32) + np.float32(0.3)
    cover = coverage(shape, places, places, 100.0)
    assert cover.sum() == pytest.approx(AREAS[shape] * 100**2, rel=2e-3)
    inside = np.abs(places) <= 112.5
    assert cover[~inside].max() == 0
    assert cover[:, ~inside].max() == 0


def test_a_picture_shows_the_objects_where_the_scene_has_them() -> None:
    picture = render(RED_ABOVE_BLUE, 100)
    assert tuple(picture[25, 50]) == COLOURS["red"]
    assert tuple(picture[70, 45]) == COLOURS["blue"]
    assert tuple(picture[5, 5]) == BACKGROUNDS["white"]
    moved = render(RED_ABOVE_BLUE, 100, jitter=[(3, 9, 1), (-2, 0, 2), (0, 0, 0)])
    assert tuple(moved[5, 5]) == (251, 255, 249)
    assert tuple(moved[25, 50]) == (213, 30, 42)
    with pytest.raises(UsageError, match="at least 8 pixels"):
        render(RED_ABOVE_BLUE, 4)


def test_held_out_kinds_take_each_colour_and_shape_once() -> None:
    assert sorted(kind.colour for kind in HELD_OUT_KINDS) == sorted(COLOURS)
    assert sorted(kind.shape for kind in HELD_OUT_KINDS) == sorted(SHAPES)


def test_held_out_pairings_are_a_tenth_and_never_change() -> None:
    names = sorted(" + ".join(sorted(" ".join(kind) for kind in pair)) for pair in HELD_OUT_PAIRINGS)
    assert 0.07 < len(names) / math.comb(len(SEEN_KINDS), 2) < 0.13
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "27dacbe18fa73c45"
    assert frozenset((Kind("red", "circle"), Kind("blue", "square"))) not in HELD_OUT_PAIRINGS


def _kinds(scene: Scene) -> list[Kind]:
    return [thing.kind for thing in scene.objects]


def _shows_held_out_pairing(scene: Scene) -> bool:
    return any(frozenset(pair) in HELD_OUT_PAIRINGS for pair in combinations(_kinds(scene), 2))


@pytest.mark.parametrize("objects", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "seen"])
def test_training_scenes_show_nothing_held_out(split: str, objects: int) -> None:
    rng = random.Random(1)
    scenes = [sample_scene(rng, objects=objects, split=split) for _ in range(150)]
    scenes += [mutate(scene, rng, split) for scene in scenes]
    assert not any(kind in HELD_OUT_KINDS for scene in scenes for kind in _kinds(scene))
    assert not any(_shows_held_out_pairing(scene) for scene in scenes)


@pytest.mark.parametrize("objects", [2, 3])
def test_test_scenes_show_what_was_held_out(objects: int) -> None:
    rng = random.Random(2)
    for _ in range(100):
        pairing = sample_scene(rng, objects=objects, split="pairing")
        assert _shows_held_out_pairing(pairing)
        assert not HELD_OUT_KINDS & set(_kinds(pairing))
        unseen = sample_scene(rng, objects=objects, split="unseen")
        assert HELD_OUT_KINDS & set(_kinds(unseen))
        assert split_of(unseen) == "unseen"


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_keeps_the_rules(split: str) -> None:
    rng = random.Random(3)
    for _ in range(200):
        scene = sample_scene(rng, objects=rng.choice((2, 3)), split=split)
        for a, b in combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > 1.12 * (a.radius + b.radius) + 0.029
            assert a.kind != b.kind
        for thing in scene.objects:
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            assert min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) > 1.12 * thing.radius + 0.019
        assert clearly_related(*scene.objects[:2])
        assert is_valid(mutate(scene, rng, split), split)


def test_all_attributes_and_relations_occur_about_equally() -> None:
    rng = random.Random(4)
    scenes = [sample_scene(rng, objects=2) for _ in range(2000)]
    things = [thing for scene in scenes for thing in scene.objects]
    counted = [
        ([thing.colour for thing in things], tuple(COLOURS)),
        ([thing.shape for thing in things], SHAPES),
        ([thing.size for thing in things], SIZES),
        ([scene.background for scene in scenes], tuple(BACKGROUNDS)),
        ([relation(*scene.objects) for scene in scenes], RELATIONS),
    ]
    for found, names in counted:
        for name in names:
            assert found.count(name) == pytest.approx(len(found) / len(names), rel=0.25)


def test_relations_read_as_people_read_them() -> None:
    circle, square = RED_ABOVE_BLUE.objects
    assert relation(circle, square) == "above"
    assert relation(square, circle) == "below"
    left = SceneObject("red", "circle", "small", 0.2, 0.5, 0.1)
    right = SceneObject("blue", "square", "small", 0.8, 0.6, 0.1)
    assert relation(left, right) == "left of"
    assert relation(right, left) == "right of"
    assert not clearly_related(left, SceneObject("blue", "square", "small", 0.6, 0.8, 0.1))


def test_mutations_reach_every_attribute_and_swap() -> None:
    found = set()
    for seed in range(300):
        mutant = mutate(RED_ABOVE_BLUE, random.Random(seed))
        if len(mutant.objects) != 2:
            found.add("count")
        elif _kinds(mutant) == [("blue", "circle"), ("red", "square")]:
            found.add("colours swapped")
        elif _kinds(mutant) == [("red", "square"), ("blue", "circle")]:
            found.add("shapes swapped")
        elif _kinds(mutant) == _kinds(RED_ABOVE_BLUE):
            found |= differences(RED_ABOVE_BLUE, mutant)
        else:
            changed = sum(
                a != b
                for old, new in zip(_kinds(RED_ABOVE_BLUE), _kinds(mutant), strict=False)
                for a, b in zip(old, new, strict=False)
            )
            assert changed == 1
            found.add("kind")
    assert found == {"count", "colours swapped", "shapes swapped", "kind", "size", "relation", "background"}


def test_siblings_captions_fit_their_own_picture_only() -> None:
    shapes = Shapes(length=240, siblings=4)
    confused = 0
    for group in range(0, 240, 4):
        members = [shapes.scene(i) for i in range(group, group + 4)]
        assert all(judge(scene, statement).exact for scene, statement in members)
        confused += sum(judge(a[0], b[1]).exact for a in members for b in members if a is not b)
    assert confused / (60 * 12) < 0.005


def _said_of(scene: Scene, colour: str, shape: str) -> SceneObject:
    return next(thing for thing in scene.objects if thing.kind == (colour, shape))


def test_captions_say_what_their_statements_hold() -> None:
    names = "|".join(COLOURS)
    shapes = "|".join(SHAPES)
    sizes = "|".join(word for words in SIZE_WORDS.values() for word in words)
    thing = rf"({names}) ({shapes})"
    words = "|".join(RELATIONS)
    link = re.compile(rf"{thing} (?:to the )?({words}) (?:a |an |the )?(?:(?:{sizes}) )?{thing}")
    told = {"size": 0, "relation": 0, "background": 0}
    for scene, statement in fixed_scenes("seen", 600, seed=8):
        said = link.search(statement.text)
        assert (said is not None) == (statement.relation is not None)
        if said is not None and statement.relation is not None:
            a, b = _said_of(scene, said[1], said[2]), _said_of(scene, said[4], said[5])
            assert relation(a, b) == said[3]
            first = statement.objects[statement.relation.subject]
            flipped = (first.colour, first.shape) != a.kind
            assert statement.relation.name == (INVERSE[said[3]] if flipped else said[3])
        assert (re.search(rf"\b({sizes})\b", statement.text) is not None) == (
            statement.objects[0].size is not None
        )
        grounds = [name for name in BACKGROUNDS if re.search(rf"\b{name}\b", statement.text)]
        assert grounds == ([] if statement.background is None else [scene.background])
        for shown in scene.objects:
            assert f"{shown.colour} {shown.shape}" in statement.text
        told["size"] += statement.objects[0].size is not None
        told["relation"] += statement.relation is not None
        told["background"] += statement.background is not None
    assert told["size"] == pytest.approx(300, abs=60)
    assert told["relation"] == pytest.approx(450, abs=50)
    assert told["background"] == pytest.approx(360, abs=60)


def test_captions_are_short_and_lower_case() -> None:
    shapes = Shapes(length=300, objects=(0.0, 0.0, 1.0), siblings=2)
    for i in range(300):
        text = shapes.scene(i)[1].text
        assert text == text.lower()
        assert len(re.findall(r"\w+|[^\w\s]", text)) <= 30


def test_the_plain_prompt_is_one_of_the_phrasings() -> None:
    texts = {describe(RED_ABOVE_BLUE, random.Random(seed)).text for seed in range(400)}
    assert "a red circle above a blue square" in texts
    assert "a blue square below a red circle" in texts
    assert len(texts) > 100


def test_a_caption_says_what_it_must() -> None:
    for seed in range(50):
        stated = describe(RED_ABOVE_BLUE, random.Random(seed), stating={"size", "relation", "background"})
        assert stated.relation is not None
        assert stated.background == "white"
        assert {thing.size for thing in stated.objects} == {"small", "large"}


def test_the_evaluations_scenes_are_fixed() -> None:
    assert fixed_scenes("unseen", 5) == fixed_scenes("unseen", 9)[:5]
    assert fixed_scenes("unseen", 5, seed=1) != fixed_scenes("unseen", 5)
    assert all(len(scene.objects) == 1 for scene, _ in fixed_scenes("seen", 5, objects=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "unknown split 'test'"),
        ({"length": 0}, "at least 1"),
        ({"siblings": 0}, "at least 1"),
        ({"objects": (0.0, 0.0, 0.0)}, "weights"),
        ({"objects": (1.0, -1.0, 1.0)}, "weights"),
        ({"split": "pairing", "objects": (0.5, 0.5, 0.0)}, "'pairing'"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Shapes(**settings)


def test_impossible_scenes_are_refused() -> None:
    rng = random.Random(0)
    with pytest.raises(UsageError, match="1 to 3 objects, got 4"):
        sample_scene(rng, objects=4)
    with pytest.raises(UsageError, match="needs at least 2"):
        sample_scene(rng, objects=1, split="pairing")
    with pytest.raises(UsageError, match="unknown split"):
        sample_scene(rng, objects=1, split="nowhere")


@pytest.mark.parametrize("index", [-1, 10])
def test_numbers_outside_the_set_are_refused(index: int) -> None:
    with pytest.raises(IndexError, match="set of 10"):
        Shapes(length=10)[index]
