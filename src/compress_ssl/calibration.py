"""The temperature at which a query has as many neighbours as it should, whatever the teacher's cosines are like.

The perplexity of a query is exp of the entropy of its similarities' distribution over the anchors: the number of
equally likely neighbours that would be as uncertain. It grows with the temperature, from 1 to the number of anchors.
Cosines of pooled ReLU features are all positive and lie close together, those of zero-centred embeddings spread over
[-1, 1]; at one temperature the first may see thousands of neighbours where the second see three.
Source of the idea: t-SNE (van der Maaten & Hinton, JMLR 2008, Sec. 2), with one temperature for all queries.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from compress_ssl.refusal import Refusal

Temperature = float | Literal["auto"]

LOWEST, HIGHEST = 1e-3, 1e2  # temperatures looked at


class Calibration(NamedTuple):
    """temperature: that meets the perplexity; share: of the anchors, the perplexity it gives (geometric mean)."""

    temperature: float
    share: float


def check_temperature(temperature: Temperature, perplexity: float) -> None:
    """Refuse what cannot be a temperature or a share of neighbours, by the names of the options."""
    if temperature != "auto" and not (isinstance(temperature, float | int) and 0 < temperature < math.inf):
        raise Refusal(f"--objective.temperature expected more than 0 or auto, got {temperature}: the paper's is 0.04")
    if not 0 < perplexity < 1:
        raise Refusal(f"--objective.perplexity expected a share of the anchors in (0, 1), got {perplexity}: 0.02 is "
                      "two in a hundred")  # fmt: skip


def perplexity_share(rows: Tensor, anchors: Tensor, *, temperature: float) -> float:
    """Perplexity of the rows' similarities over the anchors, geometric mean, as a share of the anchors.

    Args:
        rows: (B, D) unit rows of images that are not among the anchors.
        anchors: (A, D) unit rows.
    """
    return math.exp(_mean_entropy(rows.double() @ anchors.double().T, temperature)) / len(anchors)


def calibrate(rows: Tensor, anchors: Tensor, *, share: float) -> Calibration:
    """The temperature at which the rows' perplexity over the anchors is a share of them.

    A sample of the anchors serves for all of them: at one temperature the perplexity grows as their number does, as
    long as a share of the sample is more than a few anchors.

    Args:
        rows: (B, D) unit rows of images that are not among the anchors.
        anchors: (A, D) unit rows.
        share: in (0, 1).
    Raises: Refusal if the sample is too small for the share, or no temperature in [0.001, 100] gives it.
    """
    if len(rows) == 0 or share * len(anchors) < 2 - 1e-9:  # 2 / 49 of 49 is a little less than 2
        raise Refusal(
            f"--objective.temperature auto expected at least {math.ceil(2 / share)} images to look for neighbours "
            f"among, got {len(anchors)}: give a temperature, a larger --objective.perplexity or a larger --gallery"
        )
    similarities = rows.double() @ anchors.double().T
    wanted = math.log(share * len(anchors))
    low, high = math.log(LOWEST), math.log(HIGHEST)
    if not _mean_entropy(similarities, LOWEST) < wanted < _mean_entropy(similarities, HIGHEST):
        raise Refusal(
            f"--objective.temperature auto expected a perplexity of {share:g} of the anchors to be reached between "
            f"{LOWEST:g} and {HIGHEST:g}, got none: the teacher's rows are (nearly) equal or its neighbours are exact "
            "copies; look at the data or give a temperature"
        )
    while high - low > 1e-6:  # a millionth: entropy rises with temperature, so bisection finds it
        middle = (low + high) / 2
        if _mean_entropy(similarities, math.exp(middle)) < wanted:
            low = middle
        else:
            high = middle
    temperature = float(f"{math.exp(high):.4g}")  # as it is told: a run can be repeated from its log
    return Calibration(temperature, math.exp(_mean_entropy(similarities, temperature)) / len(anchors))


def _mean_entropy(similarities: Tensor, temperature: float) -> float:
    shares = (similarities / temperature).log_softmax(dim=1)
    return float(-(shares.exp() * shares).sum(dim=1).mean())
