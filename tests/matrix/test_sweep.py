"""Figures of a swept option: where points stand, and what a figure says without colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from compress_ssl.matrix.results import Result
from compress_ssl.matrix.sweep import drawing, drawings

NAMESPACE = "{http://www.w3.org/2000/svg}"


def swept(
    settings: list[str], *, objective: str = "compress_2q", option: str = "objective.temperature"
) -> list[Result]:
    return [
        Result(
            dataset="cifar10",
            student="compress/small",
            objective=objective,
            option=option,
            setting=setting,
            seed=seed,
            metric="nearest_neighbour",
            value=0.5 + 0.01 * number + 0.02 * seed,
            epochs=1.0,
            command="compress-ssl distill",
            hardware="",
        )
        for number, setting in enumerate(settings)
        for seed in range(3)
    ]


def places(svg: str) -> list[tuple[float, float]]:
    circles = ElementTree.fromstring(svg).iter(f"{NAMESPACE}circle")
    return [(float(circle.get("cx")), float(circle.get("cy"))) for circle in circles]


def test_values_that_span_a_decade_stand_by_their_logarithm():
    """Banks of 256 and 1024 would lie on one spot beside one of 128 000."""
    x = np.array([place for place, _ in places(drawing(swept(["0.01", "0.1", "1"]), title="t"))])
    assert np.diff(x) == pytest.approx([np.diff(x)[0]] * 2, abs=0.2)
    x = np.array([place for place, _ in places(drawing(swept(["0.02", "0.04", "0.08"]), title="t"))])
    assert np.diff(x)[1] == pytest.approx(2 * np.diff(x)[0], abs=0.2)


def test_the_band_is_one_sample_deviation_wide():
    """The eye takes it for the noise of a run."""
    svg = drawing(swept(["1", "2"]), title="t")
    points = next(ElementTree.fromstring(svg).iter(f"{NAMESPACE}polygon")).get("points").split()
    heights = [float(point.split(",")[1]) for point in points]
    (_, first), (_, second) = places(svg)
    percent = (first - second) / 1.0  # the two means are one per cent apart
    deviation = 100 * np.std([0.0, 0.02, 0.04], ddof=1)
    assert first - heights[0] == pytest.approx(deviation * percent, abs=0.2)
    assert heights[-1] - first == pytest.approx(deviation * percent, abs=0.2)


def test_values_without_order_are_not_joined_by_a_line():
    """A slope from cached to live would be read as a trend."""
    svg = drawing(swept(["cached", "live"], option="views"), title="t")
    assert "<polyline" not in svg
    assert len(places(svg)) == 2
    assert ">cached<" in svg
    assert ">live<" in svg


def test_numbers_are_put_in_order():
    """A line would run back and forth."""
    x = [place for place, _ in places(drawing(swept(["4", "1", "2"]), title="t"))]
    assert x == sorted(x)


def test_rows_are_labelled_and_escaped():
    """A row's name may hold what ends a drawing."""
    svg = drawing([*swept(["1", "2"]), *swept(["1", "2"], objective="a<b")], title="x & y")
    assert "a&lt;b" in svg
    assert ">compress_2q<" in svg
    ElementTree.fromstring(svg)


def test_each_option_has_a_file_and_the_others_rows_are_not_in_it():
    """Rows that the option was not changed in have no place on its axis."""
    found = drawings([*swept(["1", "2"]), *swept(["1"], option="")])
    assert list(found) == ["sweep_temperature.svg"]
    assert len(re.findall("<circle", found["sweep_temperature.svg"])) == 2
