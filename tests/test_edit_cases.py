"""The cases that edits are measured on, and the judge of what came out."""

from dataclasses import replace

import pytest

from dalle_2.data.render import render
from dalle_2.data.scenes import EXTENT, Scene
from dalle_2.evaluation.edits import STAYS_WITHIN, inpainting_cases, shows, text_diff_cases
from dalle_2.evaluation.scene_parser import Unreadable, parse

CASES = list(text_diff_cases(40, 1))


def test_one_word_changes_and_so_does_one_attribute_of_one_object() -> None:
    for case in CASES:
        before, after = (caption.replace(",", "").split() for caption in (case.source, case.target))
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        differing = [(a, b) for a, b in zip(case.before.objects, case.after.objects, strict=True) if a != b]
        assert len(differing) == 1
        old, new = differing[0]
        attributes = [name for name in ("colour", "shape") if getattr(old, name) != getattr(new, name)]
        assert len(attributes) == 1
        assert (getattr(old, attributes[0]), getattr(new, attributes[0])) in changed
        assert case.before.background == case.after.background
    assert {len(case.before.objects) for case in CASES} == {1, 2}


def test_cases_follow_from_the_seed() -> None:
    assert list(text_diff_cases(40, 1)) == CASES
    assert list(text_diff_cases(40, 2)) != CASES


def test_true_pictures_show_what_they_show() -> None:
    for case in CASES:
        assert shows(parse(render(case.after, 256)), case.after)
        assert not shows(parse(render(case.before, 256)), case.after)


@pytest.mark.parametrize("change", [{"x": 1.5 * STAYS_WITHIN}, {"y": -1.5 * STAYS_WITHIN}])
def test_what_should_stay_must_not_move(change: dict[str, float]) -> None:
    scene = CASES[0].before
    thing = scene.objects[0]
    moved = replace(thing, **{axis: getattr(thing, axis) + way for axis, way in change.items()})
    assert not shows(Scene(scene.background, (moved, *scene.objects[1:])), scene)
    near = replace(thing, x=thing.x + STAYS_WITHIN / 2)
    assert shows(Scene(scene.background, (near, *scene.objects[1:])), scene)
    assert not shows(Unreadable("no border"), scene)


def test_a_hole_holds_one_object_and_nothing_of_the_other() -> None:
    for case in inpainting_cases(40, 1):
        left, top, right, bottom = case.box
        inside = [thing for thing in case.scene.objects if left <= thing.x <= right and top <= thing.y <= bottom]
        assert len(inside) == 1
        reach = EXTENT * inside[0].radius
        assert left <= inside[0].x - reach
        assert bottom >= inside[0].y + reach
        (other,) = (thing for thing in case.scene.objects if thing is not inside[0])
        apart = max(abs(other.x - inside[0].x), abs(other.y - inside[0].y))
        assert apart > EXTENT * other.radius + reach
