"""Average precision by the rules of PASCAL VOC: of a list of answers, ranked by score, how early the right ones come.

Source: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010, Sec. 4.2, and the challenges'
development kits. Precision at a recall is the highest precision at that recall or beyond. Two rules sum it:
`eleven_point` is VOC 2007's, the mean over recall 0, 0.1, ..., 1; `all_point`, since VOC 2010, is the whole area under
it. Published numbers on VOC 2007 go by the first one unless they say otherwise.
Relations: scikit-learn's `average_precision_score` takes precision as it is at each right answer, without the highest
beyond, so it is never above `all_point` and equal where precision only falls.
Equal scores stay in the order given, as in the development kits: theirs is the order of the images' ids.
"""

from __future__ import annotations

import numpy as np

RECALLS = 11  # of the eleven-point rule


def precision_and_recall(scores: np.ndarray, right: np.ndarray, *, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of the first 1, 2, ..., N answers, best score first.

    Args:
        scores: (N,) finite; higher is surer.
        right: (N,) bool.
        positives: right answers that there are, given or not; at least the right ones given, and at least 1.
    Returns: (N,) and (N,) float64 in [0, 1]; recall never falls.
    Raises: ValueError on unequal lengths, scores that are not finite, or too few positives.
    """
    scores, right = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)
    if scores.ndim != 1 or scores.shape != right.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"expected a finite score for each of N answers, got scores {scores.shape}, {right.shape} answers and "
            f"{int((~np.isfinite(scores)).sum())} scores that are not finite: give one number for each answer."
        )
    if positives < max(1, int(right.sum())):
        raise ValueError(
            f"expected at least 1 right answer to be found, and no fewer than were, got {positives} and "
            f"{int(right.sum())} found: without any, precision and recall have no meaning."
        )
    found = np.cumsum(right[np.argsort(-scores, kind="stable")])
    return found / np.arange(1, len(found) + 1), found / positives


def eleven_point(precision: np.ndarray, recall: np.ndarray) -> float:
    """VOC 2007's rule: mean, over recall 0, 0.1, ..., 1, of the highest precision from there on; 0 where there is none.

    Args:
        precision, recall: (N,) as of `precision_and_recall`.
    """
    # tenths as quotients: three times 0.1 is more than 0.3, and a recall of exactly 0.3 would miss its point
    beyond = [precision[recall >= tenth / (RECALLS - 1)] for tenth in range(RECALLS)]
    return float(np.mean([found.max() if len(found) else 0.0 for found in beyond]))


def all_point(precision: np.ndarray, recall: np.ndarray) -> float:
    """The rule since VOC 2010: the area under the highest precision at each recall or beyond.

    Args:
        precision, recall: (N,) as of `precision_and_recall`.
    """
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * highest).sum())


def both_rules(scores: np.ndarray, right: np.ndarray, *, positives: int) -> dict[str, float]:
    """`ap_11` and `ap_all` of one ranked list; arguments as of `precision_and_recall`."""
    curve = precision_and_recall(scores, right, positives=positives)
    return {"ap_11": eleven_point(*curve), "ap_all": all_point(*curve)}
