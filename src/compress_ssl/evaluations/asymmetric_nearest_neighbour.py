"""Student queries, teacher gallery: the small model searches an index that the big one has built.

Only a student with a projector into the teacher's space (1q) can do it. 1-NN accuracy, exact.
A test image that is itself in the train set (same id, same row of the teacher) is never its own neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress_ssl.evaluations import Embedded, labelled_rows, own_rows, tensor
from compress_ssl.metrics import accuracy
from compress_ssl.neighbours import nearest_neighbours


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose: one neighbour, the exact one."""


def unfit(embedded: Embedded) -> str | None:
    """Why this cannot be computed here; None when it can."""
    if embedded.projected is None:
        return "needs the test images projected into the teacher's space, which only a 1q student can give"
    if embedded.teacher is None:
        return "needs the teacher's embeddings"
    student, teacher = embedded.projected.rows.shape[1], embedded.teacher.train.rows.shape[1]
    if student != teacher:
        return f"needs projected rows as wide as the teacher's: {student} and {teacher}"
    return None if embedded.labelled else "needs labels"


def evaluate(embedded: Embedded, config: Config) -> dict[str, float]:  # noqa: ARG001
    """`asymmetric_nearest_neighbour`: accuracy on the test split."""
    assert embedded.projected is not None, "asked although unfit"
    assert embedded.teacher is not None, "asked although unfit"
    # the labels are the data set's: a teacher known only by its vectors may have been stored without them
    theirs = labelled_rows(replace(embedded.teacher.train, labels=embedded.train.labels))
    queries = labelled_rows(replace(embedded.projected, labels=embedded.test.labels))
    own = own_rows(labelled_rows(replace(embedded.teacher.test, labels=embedded.test.labels)), theirs)
    device = embedded.device
    _, positions = nearest_neighbours(
        tensor(queries.rows, device=device), tensor(theirs.rows, device=device), count=1, own=own.to(device)
    )
    return {"asymmetric_nearest_neighbour": accuracy(theirs.labels[positions[:, 0].cpu().numpy()], queries.labels)}
