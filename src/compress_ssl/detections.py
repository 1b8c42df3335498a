"""Detected boxes against the objects that are there: average precision of every class by VOC's rules.

Source: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010, Sec. 4.2, and VOC 2007's
development kit. Surest first, a detection goes to the object of its class in its image that it overlaps most, and is
right if they overlap by at least half (intersection over union) and the object is not taken yet: a second detection of
one object is wrong. A detection of a difficult object is neither right nor wrong, and difficult objects need not be
found. The kit's boxes include their last pixel, hence its widths "+ 1"; ours end after it (`voc_layout.Object`), and
right - left is that same width: both give one and the same overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress_ssl.average_precision import both_rules
from compress_ssl.refusal import Refusal
from compress_ssl.voc_layout import Object

OVERLAP = 0.5  # at least


@dataclass(frozen=True)
class Detections:
    """N boxes found in M images, in the order of the images.

    images: (N,) int64 in [0, M).
    classes: (N,) int64.
    scores: (N,) float, higher is surer.
    boxes: (N, 4) float, edges as of `voc_layout.Object`.
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


def score(found: Detections, objects: Sequence[Sequence[Object]], *, classes: Sequence[str]) -> dict[str, Any]:
    """Average precision of every class.

    Args:
        objects: of each of M images.
        classes: names, in the order of the numbers in `found`.
    Returns: `per_class`, name -> `ap_11`, `ap_all` and `objects`, how many were to be found; `missing`, name -> why
        there is no number; `map_11`, `map_all`, the means over the classes that have one.
    Raises: Refusal if there is no object to be found.
    """
    per_class: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    for number, name in enumerate(classes):
        of_class = [[one for one in some if one.name == name] for some in objects]
        wanted = sum(not one.difficult for some in of_class for one in some)
        if not wanted:
            missing[name] = "needs objects of it that are not difficult among the images to report on"
            continue
        mine = found.classes == number
        scores = found.scores[mine]
        right, counts = match(found.images[mine], scores, found.boxes[mine], of_class)
        per_class[name] = both_rules(scores[counts], right[counts], positives=wanted) | {"objects": wanted}
    if not per_class:
        raise Refusal(f"expected an object to be found in the images to report on, got none in {len(objects)} that is "
                      "not difficult: annotate some")  # fmt: skip
    means = {f"m{rule}": float(np.mean([one[rule] for one in per_class.values()])) for rule in ("ap_11", "ap_all")}
    return {**means, "per_class": per_class, "missing": missing}


def match(
    images: np.ndarray, scores: np.ndarray, boxes: np.ndarray, objects: Sequence[Sequence[Object]]
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of one class are right, and which count at all.

    Args:
        images, scores, boxes: (N,), (N,), (N, 4).
        objects: of this class, in each of M images.
    Returns: (N,) bool and (N,) bool; equal scores take their turns in the order given.
    """
    edges = [np.array([one.box for one in some], dtype=np.float64).reshape(-1, 4) for some in objects]
    taken = [np.zeros(len(some), dtype=bool) for some in objects]
    right, counts = np.zeros(len(scores), dtype=bool), np.ones(len(scores), dtype=bool)
    for place in np.argsort(-scores, kind="stable"):
        image = images[place]
        if not len(edges[image]):
            continue
        shares = overlaps(boxes[place], edges[image])
        best = int(shares.argmax())  # of equal ones the first
        if shares[best] < OVERLAP:
            continue
        if objects[image][best].difficult:
            counts[place] = False
        elif not taken[image][best]:
            taken[image][best] = right[place] = True
    return right, counts


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,) with others (G, 4), float64; edges as of `voc_layout.Object`."""
    box = box.astype(np.float64)
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared)
