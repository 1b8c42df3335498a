"""The temperature that gives a query as many neighbours as it should have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.calibration import calibrate, check_temperature, perplexity_share
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


def rows(count: int, *, seed: int, positive: bool) -> Tensor:
    """Clusters; pooled ReLU features if `positive`."""
    centres = torch.randn(15, 40, generator=torch.Generator().manual_seed(5))
    draw = torch.Generator().manual_seed(seed)
    points = centres[torch.randint(15, (count,), generator=draw)] + 0.5 * torch.randn(count, 40, generator=draw)
    return functional.normalize(points.relu() if positive else points)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_temperature_gives_the_perplexity_that_was_asked_for(positive: bool, share: float) -> None:
    """Checked with loops over Python's floats: exp of the mean entropy over the anchors."""
    queries, anchors = rows(23, seed=1, positive=positive), rows(701, seed=2, positive=positive)
    found = calibrate(queries, anchors, share=share)
    entropies = []
    for query in queries.double():
        weights = [math.exp(float(query @ anchor) / found.temperature) for anchor in anchors.double()]
        shares = [weight / math.fsum(weights) for weight in weights]
        entropies.append(-math.fsum(p * math.log(p) for p in shares if p))
    perplexity = math.exp(math.fsum(entropies) / len(entropies))
    assert perplexity / len(anchors) == pytest.approx(share, rel=2e-3)
    assert found.share == pytest.approx(perplexity / len(anchors), rel=1e-9)


def test_teachers_whose_cosines_lie_closer_together_get_a_lower_temperature() -> None:
    """One temperature for all teachers shows half the data set to one and a handful of images to another."""
    temperatures, shares = [], []
    for positive in (True, False):
        queries, anchors = rows(50, seed=1, positive=positive), rows(900, seed=2, positive=positive)
        temperatures.append(calibrate(queries, anchors, share=0.05).temperature)
        shares.append(perplexity_share(queries, anchors, temperature=0.07))
    assert temperatures[0] < temperatures[1] * 0.95
    assert shares[0] > shares[1] * 1.1


def test_a_sample_of_the_anchors_serves_for_all_of_them() -> None:
    """Calibrating on a gallery of 5000 would mislead about a bank of a million."""
    queries, anchors = rows(50, seed=1, positive=True), rows(8000, seed=2, positive=True)
    whole, part = (calibrate(queries, some, share=0.05).temperature for some in (anchors, anchors[:800]))
    assert part == pytest.approx(whole, rel=0.03)


@pytest.mark.parametrize("count", [48, 49, 98, 103])
def test_two_neighbours_of_any_number_of_images_can_be_asked_for(count: int) -> None:
    """A gallery of 49 would be refused, as too small for 2 / 49 of it, where 48 and 50 are not."""
    queries, anchors = rows(5, seed=1, positive=True), rows(count, seed=2, positive=True)
    assert calibrate(queries, anchors, share=2 / count).share * count == pytest.approx(2, rel=2e-3)


def test_what_cannot_be_calibrated_is_refused() -> None:
    """A temperature out of thin air would be trained with for days."""
    queries, anchors = rows(5, seed=1, positive=True), rows(99, seed=2, positive=True)
    with pytest.raises(Refusal, match=r"expected at least 200 images to look for neighbours among, got 99"):
        calibrate(queries, anchors, share=0.01)
    with pytest.raises(Refusal, match=r"expected at least 20 images"):
        calibrate(queries[:0], anchors[:0], share=0.1)
    with pytest.raises(Refusal, match="the teacher's rows are"):
        calibrate(anchors[:1], anchors[:1].expand(99, -1), share=0.1)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "warm"])
def test_what_is_no_temperature_is_refused(temperature) -> None:
    """Similarities divided by it would be infinite, or turned upside down."""
    with pytest.raises(Refusal, match=r"--objective.temperature expected more than 0 or auto"):
        check_temperature(temperature, 0.02)


@pytest.mark.parametrize("share", [0, 1, -0.1, 30.0])
def test_what_is_no_share_of_the_anchors_is_refused(share: float) -> None:
    """A perplexity given as a number of neighbours would be taken as thirty times all anchors."""
    with pytest.raises(Refusal, match=r"--objective.perplexity expected a share of the anchors in \(0, 1\), got"):
        check_temperature("auto", share)
