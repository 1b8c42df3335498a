"""Share of the teacher's nearest neighbours that the student keeps. Needs no labels.

Queries are the test images, the gallery is the train split, for both models. It is the quantity that matching
similarities to anchors is about, so it moves when accuracies are saturated.
A test image that is itself in the train set (same id, same row of the teacher) is never its own neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress_ssl.evaluations import Embedded, own_rows
from compress_ssl.metrics import overlap
from compress_ssl.refusal import Refusal


@dataclass(frozen=True, kw_only=True)
class Config:
    neighbours: tuple[int, ...] = (1, 5, 10, 50)  # each gives a metric; capped at the gallery, where the share is 1

    def __post_init__(self) -> None:
        if not self.neighbours or min(self.neighbours) < 1:
            raise Refusal(f"expected numbers of neighbours from 1 up, got {self.neighbours}: give for example 1 10.")


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    return None if embedded.teacher is not None else "needs the teacher's embeddings"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:
    """`neighbour_overlap_K`: mean over the test images of the share of K neighbours common to student and teacher."""
    teacher = embedded.teacher
    assert teacher is not None, "asked although unfit"
    own, most = own_rows(teacher.test, teacher.train), max(config.neighbours)
    ours = embedded.nearest(most, own=own)
    same = teacher.train is embedded.train and teacher.test is embedded.test  # the teacher beside itself
    theirs = ours if same else teacher.nearest(most, own=own)
    return {f"neighbour_overlap_{count}": overlap(theirs[:, :count], ours[:, :count]) for count in config.neighbours}
