"""The verdicts: what a caption states must be there, what it leaves out is free."""

import random
from dataclasses import replace

import pytest

from dalle_2.data.captions import StatedObject, StatedRelation, Statement
from dalle_2.data.scenes import Scene, SceneObject
from dalle_2.data.shapes import fixed_scenes
from dalle_2.evaluation.exact_match import Verdict, aggregate, judge
from dalle_2.evaluation.scene_parser import Unreadable

CIRCLE = SceneObject("red", "circle", "small", 0.5, 0.2, 0.1)
SQUARE = SceneObject("blue", "square", "large", 0.45, 0.7, 0.19)
SCENE = Scene("white", (CIRCLE, SQUARE))
FULL = Statement(
    "a small red circle above a large blue square on a white background",
    (StatedObject("red", "circle", "small"), StatedObject("blue", "square", "large")),
    StatedRelation(0, "above", 1),
    "white",
)
PLAIN = Statement(
    "a red circle and a blue square", (StatedObject("red", "circle"), StatedObject("blue", "square"))
)


def _scene(*things: SceneObject, background: str = "white") -> Scene:
    return Scene(background, things)


def test_the_scene_described_matches_in_any_order() -> None:
    everything_right = Verdict(True, True, True, True, True, True, True)
    assert judge(SCENE, FULL) == everything_right
    assert judge(_scene(SQUARE, CIRCLE), FULL) == everything_right


def test_what_is_not_stated_is_free() -> None:
    other = _scene(
        replace(SQUARE, x=0.1, y=0.1, size="small"), replace(CIRCLE, size="large"), background="navy"
    )
    assert judge(other, PLAIN) == Verdict(True, True, True, True, None, None, None)
    assert not judge(other, FULL).exact


@pytest.mark.parametrize(
    ("wrong", "scene"),
    [
        ("colour", _scene(replace(CIRCLE, colour="pink"), SQUARE)),
        ("shape", _scene(CIRCLE, replace(SQUARE, shape="heart"))),
        ("size", _scene(replace(CIRCLE, size="medium"), SQUARE)),
        ("relation", _scene(replace(CIRCLE, y=0.9), SQUARE)),
        ("background", _scene(CIRCLE, SQUARE, background="black")),
        ("count", _scene(CIRCLE, SQUARE, replace(CIRCLE, colour="green", x=0.9))),
    ],
)
def test_one_wrong_thing_is_named_and_spoils_the_match(wrong: str, scene: Scene) -> None:
    verdict = judge(scene, FULL)
    judged = {
        name: getattr(verdict, name)
        for name in ("count", "colour", "shape", "size", "relation", "background")
    }
    assert [name for name, right in judged.items() if not right] == [wrong]
    assert not verdict.exact


def test_swapped_colours_are_no_match() -> None:
    verdict = judge(_scene(replace(CIRCLE, colour="blue"), replace(SQUARE, colour="red")), PLAIN)
    assert not verdict.exact
    assert verdict.count
    assert not (verdict.colour and verdict.shape)


def test_a_missing_object_is_wrong_in_everything_it_should_have() -> None:
    verdict = judge(_scene(CIRCLE), FULL)
    assert verdict == Verdict(False, False, False, False, False, False, True)


def test_objects_alike_in_part_are_paired_for_the_best() -> None:
    twins = Statement(
        "",
        (StatedObject("red", "circle"), StatedObject("red", "square")),
        StatedRelation(0, "above", 1),
        None,
    )
    scene = _scene(replace(SQUARE, colour="red"), CIRCLE)
    assert judge(scene, twins).exact
    assert not judge(scene, replace(twins, relation=StatedRelation(0, "below", 1))).exact


def test_the_unreadable_is_wrong_in_all_that_was_stated() -> None:
    assert judge(Unreadable("noise"), FULL) == Verdict(
        False, False, False, False, False, False, False, "noise"
    )
    assert judge(Unreadable("noise"), PLAIN) == Verdict(False, False, False, False, None, None, None, "noise")


@pytest.mark.parametrize("split", ["seen", "pairing", "unseen"])
def test_true_scenes_match_their_captions_and_hardly_ever_others(split: str) -> None:
    scenes = fixed_scenes(split, 300, seed=3)
    assert all(judge(scene, statement).exact for scene, statement in scenes)
    strangers = list(range(300))
    random.Random(0).shuffle(strangers)
    matches = sum(judge(scenes[i][0], scenes[j][1]).exact for i, j in enumerate(strangers) if i != j)
    assert matches <= 3


def test_rates_count_only_what_was_stated() -> None:
    rates = aggregate([judge(SCENE, FULL), judge(SCENE, PLAIN), judge(Unreadable("noise"), PLAIN)])
    assert (rates["exact"].hits, rates["exact"].n) == (2, 3)
    assert (rates["relation"].hits, rates["relation"].n) == (1, 1)
    assert (rates["unreadable"].hits, rates["unreadable"].n) == (1, 3)
    assert aggregate([])["exact"].value is None
    low, high = rates["exact"].low, rates["exact"].high
    assert low is not None
    assert high is not None
    assert 0 < low < 2 / 3 < high < 1
