"""Detections against the devkit's arithmetic, written out in its own pixels: counted from 1, the last one included."""

from __future__ import annotations

import numpy as np
import pytest

from compress_ssl.detections import Detections, match, score
from compress_ssl.refusal import Refusal
from compress_ssl.voc_layout import Object

CLASSES = ("bird", "cat", "dog")
Inclusive = tuple[int, int, int, int]


def ours(box: Inclusive) -> tuple[float, float, float, float]:
    return box[0] - 1, box[1] - 1, box[2], box[3]


def problem(seed: int, *, images: int = 7) -> tuple[list, list]:
    """Objects (image, class, inclusive box, difficult) and detections (image, class, score, inclusive box)."""
    random = np.random.default_rng(seed)

    def box() -> Inclusive:
        left, top = random.integers(1, 6, 2)
        wide, tall = random.integers(0, 8, 2)
        return int(left), int(top), int(left + wide), int(top + tall)

    objects = [(int(random.integers(images)), int(random.integers(3)), box(), bool(random.random() < 0.25))
               for _ in range(29)]  # fmt: skip
    scores = random.permutation(131) / 131
    found = [(int(random.integers(images)), int(random.integers(3)), float(one), box()) for one in scores]
    for number in range(0, 60, 2):  # some near an object, so that there is something right
        image, kind, (left, top, right, bottom), _ = objects[number % 29]
        found[number] = (image, kind, found[number][2], (left, top, right + int(random.integers(2)), bottom))
    return objects, found


def devkit(objects: list, found: list, kind: int) -> tuple[float, float]:
    """The development kit's loop over the detections of one class, and both rules, one step at a time."""
    truth = [[image, box, difficult, False] for image, one, box, difficult in objects if one == kind]
    wanted = sum(not one[2] for one in truth)
    right = wrong = 0
    curve = []
    for image, _, _, (left, top, after, below) in sorted((one for one in found if one[1] == kind), key=lambda d: -d[2]):
        most, best = -1.0, None
        for one in truth:
            if one[0] != image:
                continue
            x1, y1, x2, y2 = one[1]
            wide = min(after, x2) - max(left, x1) + 1
            tall = min(below, y2) - max(top, y1) + 1
            if wide > 0 and tall > 0:
                whole = (after - left + 1) * (below - top + 1) + (x2 - x1 + 1) * (y2 - y1 + 1) - wide * tall
                if wide * tall / whole > most:
                    most, best = wide * tall / whole, one
        if best is not None and most >= 0.5:
            if best[2]:
                continue
            if not best[3]:
                best[3] = True
                right += 1
            else:
                wrong += 1
        else:
            wrong += 1
        curve.append((right / (right + wrong), right / wanted))
    eleven = sum(max([p for p, r in curve if r >= tenth / 10], default=0) for tenth in range(11)) / 11
    area, before = 0.0, 0.0
    for place, (_, recall) in enumerate(curve):
        area += (recall - before) * max(p for p, _ in curve[place:])
        before = recall
    return eleven, area


def given(objects: list, found: list, *, images: int = 7) -> tuple[Detections, list[list[Object]]]:
    by_image = [[Object(CLASSES[kind], ours(box), difficult) for where, kind, box, difficult in objects
                 if where == image] for image in range(images)]  # fmt: skip
    return Detections(
        np.array([one[0] for one in found]),
        np.array([one[1] for one in found]),
        np.array([one[2] for one in found]),
        np.array([ours(one[3]) for one in found], dtype=np.float64),
    ), by_image


@pytest.mark.parametrize("seed", range(30))
def test_average_precision_is_the_devkits(seed: int) -> None:
    """Detection numbers could not be set beside published ones."""
    objects, found = problem(seed)
    scored = score(*given(objects, found), classes=CLASSES)
    expected = [devkit(objects, found, kind) for kind in range(3)]
    for name, (eleven, area) in zip(CLASSES, expected, strict=True):
        one = scored["per_class"][name]
        assert (one["ap_11"], one["ap_all"]) == pytest.approx((eleven, area), abs=1e-12)
    assert scored["map_11"] == pytest.approx(np.mean([eleven for eleven, _ in expected]))
    assert scored["map_all"] == pytest.approx(np.mean([area for _, area in expected]))
    assert 0.02 < scored["map_all"] < 0.98, "neither hopeless nor perfect, or the rules would hardly differ"


def one_image(*objects: tuple[Inclusive, bool]) -> list[list[Object]]:
    return [[Object("cat", ours(box), difficult) for box, difficult in objects]]


def matched(boxes: list[Inclusive], objects: list[list[Object]]) -> list[str]:
    """What becomes of detections, surest first."""
    right, counts = match(
        np.zeros(len(boxes), int), -np.arange(len(boxes)), np.array([ours(box) for box in boxes]), objects
    )
    return ["left out" if not count else "right" if one else "wrong" for one, count in zip(right, counts, strict=True)]


def test_a_second_detection_of_an_object_is_wrong() -> None:
    """Ten boxes around one cat would count as ten cats found."""
    assert matched([(1, 1, 9, 9), (1, 1, 9, 9)], one_image(((1, 1, 9, 9), False))) == ["right", "wrong"]


def test_it_is_wrong_also_where_another_object_is_left_nearby() -> None:
    """The kit asks for the object of most overlap alone, taken or not."""
    objects = one_image(((1, 1, 10, 10), False), ((3, 1, 12, 10), False))
    assert matched([(1, 1, 10, 10), (1, 1, 10, 10)], objects) == ["right", "wrong"]


def test_a_difficult_object_is_found_for_nothing_and_as_often_as_one_likes() -> None:
    """It would be held against whoever sees what is hard to see."""
    assert matched([(1, 1, 9, 9)] * 3, one_image(((1, 1, 9, 9), True))) == ["left out"] * 3


def test_an_overlap_of_exactly_half_is_enough() -> None:
    """The kit's bound is included."""
    objects = one_image(((1, 1, 10, 20), False))
    assert matched([(1, 1, 10, 10)], objects) == ["right"]
    assert matched([(1, 1, 10, 9)], objects) == ["wrong"]


def test_boxes_of_one_pixel_overlap_as_the_devkits_do() -> None:
    """Without the + 1 a box of one pixel has no area, and two boxes that share one pixel share nothing."""
    assert matched([(5, 5, 5, 5)], one_image(((5, 5, 5, 5), False))) == ["right"]
    assert matched([(5, 5, 6, 5)], one_image(((5, 5, 5, 5), False))) == ["right"]
    assert matched([(5, 5, 7, 5)], one_image(((5, 5, 5, 5), False))) == ["wrong"]


def test_a_class_that_is_only_difficult_has_no_number() -> None:
    """Its average precision would be 0 / 0."""
    nothing = Detections(np.empty(0, int), np.empty(0, int), np.empty(0), np.empty((0, 4)))
    objects = [[Object("cat", (0, 0, 1, 1), True), Object("dog", (0, 0, 1, 1), False)], []]
    scored = score(nothing, objects, classes=CLASSES)
    assert scored["per_class"] == {"dog": {"ap_11": 0, "ap_all": 0, "objects": 1}}
    assert set(scored["missing"]) == {"bird", "cat"}
    with pytest.raises(Refusal, match="expected an object to be found"):
        score(nothing, [[]], classes=CLASSES)
