"""Scores of a student while it learns: on held-out images, needing no labels; the best student is kept.

Best is the one that keeps most of its teacher's neighbours; of several teachers, on the mean weighted as their losses
are. Where the images are labelled, accuracy is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from compress_ssl import evaluations, objectives
from compress_ssl.calibration import calibrate, perplexity_share
from compress_ssl.datasets import Splits
from compress_ssl.embed import embed
from compress_ssl.encoder import Encoder, open_encoder
from compress_ssl.evaluate import Protocols, describe, result_table, score, side_by_side, write_results
from compress_ssl.evaluations import Embedded
from compress_ssl.loader import Skipped
from compress_ssl.processes import on_first
from compress_ssl.projector import About
from compress_ssl.run_folder import RunFolder
from compress_ssl.student import Student, save_student
from compress_ssl.teacher import LiveTeacher
from compress_ssl.teachers import Teachers
from compress_ssl.training import Training
from compress_ssl.transforms import EvaluationView
from compress_ssl.weighted import Weighted, leaves

if TYPE_CHECKING:
    from lightning.fabric import Fabric

KEPT = "neighbour_overlap_10"  # share of a teacher's ten nearest neighbours that the student keeps


def judged_by(teachers: Teachers, watched: Splits) -> list[Embedded]:
    """Each teacher's rows of gallery and held-out images: what students are scored against, and its neighbourhoods."""
    assert watched.test is not None
    return [Embedded(train=one.embeddings(watched.train), test=one.embeddings(watched.test)) for one in teachers]


def settle_centres(objective: Weighted, judges: list[Embedded] | None, fabric: Fabric) -> None:
    """Tell each objective that asks for it (`centre_on`) the mean of its teacher's rows of the gallery. Every process
    must call it.

    Args:
        judges: in the first process.
    """
    asking = [(number, leaf) for number, one in enumerate(objective) for leaf in leaves(one).values()
              if hasattr(leaf, "centre_on")]  # fmt: skip

    def found() -> list[torch.Tensor]:
        assert judges is not None
        # NumPy sums float32 rows in float64 without a copy of them: 5 GB of a million rows of 512
        means = [judges[number].train.rows.mean(axis=0, dtype=np.float64) for number, _ in asking]
        return [torch.from_numpy(mean).float() for mean in means]

    if asking:
        for (_, leaf), mean in zip(asking, fabric.broadcast(on_first(fabric, found) or []), strict=True):
            leaf.centre_on(mean)


def settle_temperatures(objective: Weighted, judges: list[Embedded] | None, fabric: Fabric) -> bool:
    """Give each objective whose temperature is `auto` that of its teacher: at it, held-out rows have a share of the
    gallery as neighbours. Every process must call it.

    Args:
        judges: in the first process.
    Returns: whether there was anything to do.
    """
    automatic = [
        (number, leaf)
        for number, one in enumerate(objective)
        for leaf in leaves(one).values()
        if leaf.temperature == "auto"
    ]

    def found() -> list[float]:
        assert judges is not None
        temperatures = []
        for number, leaf in automatic:
            queries, gallery = as_compared(leaf, judges[number])
            share = objectives.neighbour_share(leaf.config, len(gallery))
            temperatures.append(calibrate(queries, gallery, share=share).temperature)
        return temperatures

    if automatic:
        for (_, leaf), temperature in zip(automatic, fabric.broadcast(on_first(fabric, found) or []), strict=True):
            leaf.temperature = float(temperature)
    return bool(automatic)


def as_compared(leaf: Any, judge: Embedded) -> list[torch.Tensor]:
    """Held-out rows (Q, D_t) and gallery (N, D_t) of a teacher as the objective compares them."""
    seen = getattr(leaf, "seen", lambda rows: rows)
    return [seen(rows) for rows in _rows(judge)]


def temperatures_told(objective: Weighted, judges: list[Embedded], names: Sequence[str]) -> list[str]:
    """What each teacher's temperature amounts to, where it was `auto`; of a sum, that of each term."""
    told = []
    for one, judge, name in zip(objective, judges, names, strict=True):
        for term, leaf in leaves(one).items():
            if getattr(leaf.config, "temperature", None) != "auto":
                continue
            share = perplexity_share(*as_compared(leaf, judge), temperature=leaf.temperature)
            neighbours = f"perplexity {share * leaf.bank.size:.0f} among {leaf.bank.size} anchors ({share:.1%})"
            whose = " ".join(part for part in ("" if len(names) == 1 else name, term) if part)
            told.append(f"{f'{whose}: ' if whose else ''}temperature {leaf.temperature:g}: {neighbours}")
    return told


def best_epoch(folder: RunFolder) -> str:
    """Which student was kept, for whoever believes that it is the last one."""
    scored = [line for line in folder.metrics() if line["kind"] == "validation"]
    best = max(scored, key=lambda line: line[KEPT])  # of equal ones the first, as it is kept
    told = f"kept: the student of epoch {best['epoch']:.3g} of {scored[-1]['epoch']:.3g}"
    if not best["step"]:
        told += ", which is untrained: none after it kept more neighbours; train longer, or change the learning rate"
    return told


class Scorer:
    """Scores the student on held-out images, without labels, and keeps the best one in the run folder.

    Args:
        judges: of each teacher its rows of both splits.
        projected: of each of the student's projectors, what is to be kept beside it.
        objective: for its temperatures, and what each teacher counts.
        data: as it was named.
        timed: whether results.json is to say how fast the encoders are.
    """

    def __init__(
        self,
        student: Student,
        teachers: Teachers,
        judges: Sequence[Embedded],
        objective: Weighted,
        projected: Sequence[About],
        *,
        data: str,
        splits: Splits,
        folder: RunFolder,
        on_skip: Callable[[Skipped], Any],
        workers: int | None,
        console: Console,
        timed: bool = True,
    ):
        self.timed = timed
        self.student, self.teachers, self.objective, self.projected = student, teachers, objective, projected
        self.data, self.splits, self.folder, self.on_skip = data, splits, folder, on_skip
        self.workers, self.console = workers, console
        self.device = next(student.parameters()).device
        assert splits.test is not None
        self.watched = (splits.train, splits.test)
        self.judges = dict(zip(teachers.names, judges, strict=True))

    def __call__(self, training: Training) -> dict[str, float]:
        """Scores of the student as it is; writes it to student/ if it keeps more neighbours than any before."""
        embedded = self._embed(self.student.encoder)
        scores = self._kept(embedded)
        if embedded.labelled:
            nearest = evaluations.find("nearest_neighbour")
            for prefix, model in {"": embedded, **{f"{name}_": judge for name, judge in self.judges.items()}}.items():
                found = nearest.evaluate(model, nearest.Config())
                scores[f"{prefix}nearest_neighbour"] = found["nearest_neighbour"]
        if scores[KEPT] > training.best:
            training.best = scores[KEPT]
            save_student(self.student, self.folder.path / "student", self.projected)
        return scores

    def finish(self) -> None:
        """Score the best student and its teachers on the held-out images once more, for results.json."""
        best = open_encoder(str(self.folder.path), weights="random")
        best = best.to(self.device).to(memory_format=torch.channels_last)
        embedded = self._embed(best)
        models = {**self.judges, "student": embedded}
        chosen = {
            name: evaluations.find(name) for name in ("nearest_neighbour", "neighbour_overlap", "cluster_alignment")
        }
        several = len(self.judges) > 1  # each is then nobody's student: beside itself it would keep all
        judged = {name: judge.beside(None) if several else judge for name, judge in self.judges.items()}
        scores = {name: score(model, chosen, Protocols()) for name, model in (judged | {"student": embedded}).items()}
        scores["student"]["metrics"] |= self._kept(embedded)
        about = self._about(best)
        write_results(self.folder, data=self.data, models=models, scores=scores, about=about, splits=self.splits)
        self.console.print(result_table(scores, about, models=models))
        self.console.print(best_epoch(self.folder), highlight=False)
        if self.folder.skipped():
            self.console.print(self.folder.skipped_told(), markup=False)

    def _about(self, best: Encoder) -> dict[str, dict[str, Any]]:
        """What results.json says of each model beside its scores."""
        temperatures = [one.temperature for one in self.objective]  # the numbers, also where config.yaml says auto
        alone = len(temperatures) == 1
        where = self.device if self.timed else None
        about: dict[str, dict[str, Any]] = {}
        for number, (name, judge) in enumerate(self.judges.items()):
            about[name] = {"spec": self.teachers.specs[number], "width": judge.train.rows.shape[1]}
            if not alone:
                about[name] |= {"role": "teacher", "weight": self.objective.shares[number]}
                about[name]["temperature"] = temperatures[number]
            member = self.teachers.members[number]
            if isinstance(member, LiveTeacher):
                about[name] |= describe(member.encoder, where)
        kept = {"temperature": temperatures[0]} if alone else {}
        about["student"] = {"spec": str(self.folder.path), **kept, **describe(best, where)}
        return about

    def _kept(self, embedded: Embedded) -> dict[str, float]:
        """Share of neighbours kept; of several teachers the weighted mean, and each by its name."""
        overlap = evaluations.find("neighbour_overlap")
        ten = overlap.Config(neighbours=(10,))
        if len(self.judges) == 1:
            return overlap.evaluate(embedded, ten)
        each = [overlap.evaluate(embedded.beside(judge), ten)[KEPT] for judge in self.judges.values()]
        mean = sum(share * found for share, found in zip(self.objective.shares, each, strict=True))
        return {KEPT: mean} | {f"{KEPT}_{name}": found for name, found in zip(self.judges, each, strict=True)}

    def _embed(self, encoder: Encoder) -> Embedded:
        """Both splits as `encoder` sees them, in eval mode, beside the first teacher; the encoder's mode is put back.

        The rows of a teacher never change, so what was searched among them is kept from one validation to the next.
        """
        training = encoder.training
        encoder.eval()
        rows = [
            embed(
                encoder,
                images,
                view=EvaluationView(encoder.preprocessing),
                device=self.device,
                workers=self.workers,
                on_skip=self.on_skip,
                console=self.console,
                told="scoring",
            )
            for images in self.watched
        ]
        encoder.train(training)
        train, test = (
            {**{name: getattr(judge, split) for name, judge in self.judges.items()}, "student": its}
            for split, its in zip(("train", "test"), rows, strict=True)
        )
        models = side_by_side(train, test)  # a teacher's vectors may be of pictures that are not read here
        student = models.pop("student")
        for name, model in models.items():
            known = self.judges[name]
            if known.teacher is None or (known.train.ids, known.test.ids) != (model.train.ids, model.test.ids):
                alone = model.beside(None)
                self.judges[name] = alone.beside(alone)
        return student.beside(next(iter(self.judges.values())))


def _rows(judge: Embedded) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(judge.test.rows), torch.from_numpy(judge.train.rows)
