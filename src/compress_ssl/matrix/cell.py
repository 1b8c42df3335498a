"""One cell: train, or go on with what was begun; score the student on the test split; scores.json in its run folder.

What the cells of a process share is made once: the opened data, the teacher's rows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress_ssl import checkpoint, distill, embed, evaluations, pretrain
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.device import open_device
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import Encoder, costs, open_encoder
from compress_ssl.evaluate import from_stored, open_data, score, side_by_side
from compress_ssl.evaluations import Embedded
from compress_ssl.loader import Skipped, refuse_skipped
from compress_ssl.lock import alone
from compress_ssl.matrix.command import command
from compress_ssl.matrix.crew import Elsewhere
from compress_ssl.matrix.plan import Cell, Untrained
from compress_ssl.projector import load_projectors
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import changes, environment, nothing_computed, plain, write_atomically
from compress_ssl.stored import open_stored
from compress_ssl.transforms import EvaluationView

SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all cells are scored with. Picklable: each process makes its own data and teacher of it.

    Its jobs raise Elsewhere if another command is at them; with `wait` they are done once it no longer is.

    Args:
        teacher: table of stored embeddings, or a file of vectors.
        about: what is known of the teacher: spec, parameters, multiply_adds.
        protocols: how each evaluation is done.
        command: that started the benchmark; of what no other verb makes.
    """

    data: str
    teacher: str
    about: dict[str, Any]
    out: Path
    evaluations: tuple[str, ...]
    protocols: Any
    device: str
    unusual: Any
    held_out: int
    workers: int | None
    batch_size: int
    keep_checkpoints: bool
    command: str

    @functools.cached_property
    def splits(self) -> Splits:
        return open_data(self.data, self.held_out, unusual=self.unusual)

    @functools.cached_property
    def embedded_teacher(self) -> Embedded:
        stored = open_stored(self.teacher)
        assert stored is not None
        train, test = from_stored(stored, self.splits)
        itself = Embedded(train=train, test=test, device=self.where)
        return replace(itself, teacher=itself)

    @property
    def where(self) -> str:
        """Where evaluations compute; the search needs float64, which Apple's devices lack."""
        return "cpu" if self.device == "mps" else self.device

    def embed(self, config: embed.Config, *, wait: bool = False) -> None:
        """Make a table of the teacher's rows, or the rest of it."""
        assert config.out is not None  # of all tables of the matrix
        with _here_alone(config.out, wait=wait):
            embed.run(config)

    def score_teacher(self, *, wait: bool = False) -> dict[str, Any]:
        """What OUT/teacher/scores.json holds, after scoring what is missing in it."""
        row = {"student": self.about["spec"], "row": "teacher", "option": "", "setting": "", "seed": None}
        cost = {name: self.about.get(name) for name in ("parameters", "multiply_adds")}
        told = {"epochs": None, "command": self.command, **row, "costs": cost}
        file = self.out / "teacher" / SCORES
        with _here_alone(file, wait=wait):
            return self._completed(file, self.about, lambda: (told, self.embedded_teacher))

    def do(self, cell: Cell, *, wait: bool = False) -> dict[str, Any]:
        """What the cell's scores.json holds, after training and scoring what is missing in it."""
        with _here_alone(cell.folder, wait=wait):
            return self._done(cell)

    def _done(self, cell: Cell) -> dict[str, Any]:
        row = {name: getattr(cell, name) for name in ("student", "row", "option", "setting", "seed")}

        def untrained() -> tuple[dict[str, Any], Embedded]:
            torch.manual_seed(cell.seed)
            encoder = open_encoder(cell.student, weights="random", size=cell.config.size)
            told = {"epochs": 0.0, "command": self.command, **row, "costs": costs(encoder)}
            return told, self._embedded(encoder, cell)

        def trained() -> tuple[dict[str, Any], Embedded]:
            verb = distill if isinstance(cell.config, distill.Config) else pretrain
            took = self._trained(cell, verb)
            encoder = open_encoder(str(cell.folder), weights="random")
            told = {"epochs": cell.config.training.epochs, **row, "costs": {**took, **costs(encoder)}}
            told["command"] = command(verb.__name__.rpartition(".")[2], cell.config)
            return told, self._embedded(encoder, cell)

        make = untrained if isinstance(cell.config, Untrained) else trained
        return self._completed(cell.folder / SCORES, cell.config, make)

    def _completed(
        self, file: Path, config: Any, make: Callable[[], tuple[dict[str, Any], Embedded]]
    ) -> dict[str, Any]:
        """The scores of the file; those that are missing are made, and written there.

        Args:
            make: returns what else is to be said of the model, and the model itself.
        """
        before = known = read_scores(file) if file.exists() else None
        if known is not None:
            by, here = (_of(told, known["evaluations"]) for told in (known["protocols"], plain(self.protocols)))
            if (known["config"], by) != (_compared(config), here):
                known = None
        missing = [name for name in self.evaluations if known is None or name not in known["evaluations"]]
        if known is not None and not missing:
            return known
        told, embedded = make()
        found = score(embedded, {name: evaluations.find(name) for name in missing}, self.protocols)
        for name, value in found["metrics"].items():
            if not math.isfinite(value):
                raise Refusal(f"expected a number as the score {name}, got {value}: look at the run's metrics")
        if known is not None:
            found = {kind: {**known[kind], **found[kind]} for kind in found}
            missing = [*known["evaluations"], *missing]
        here = environment()
        if before is not None:  # what the training took is known since its first scores: it is not repeated for others
            told["costs"] = before["costs"] | told["costs"]
        told["costs"]["test_images"] = len(embedded.test.ids)
        whole = {
            "dataset": self.data,
            **told,
            **found,
            "evaluations": missing,
            "protocols": plain(self.protocols),
            "config": _compared(config),
            "hardware": here["hardware"] if before is None else before["hardware"],
            "versions": here["versions"],
            "scored": now(),
        }
        write_atomically(file, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        if not self.keep_checkpoints:
            shutil.rmtree(file.parent / "checkpoints", ignore_errors=True)  # nothing goes on from a finished run
        return whole

    def refuse_other(self, cell: Cell) -> None:
        """Refuse to go on in a folder that holds another run than this cell."""
        if isinstance(cell.config, Untrained) or not self._begun(cell):
            return
        if changed := changes(cell.folder, cell.config):
            raise Refusal(f"--out expected a new folder or the same benchmark, got {cell.folder}, which was started "
                          f"with {'; '.join(changed)}: name another --out, or rename the row")  # fmt: skip

    @staticmethod
    def _begun(cell: Cell) -> bool:
        """Whether there is anything in its folder that another configuration would spoil."""
        return (cell.folder / "config.yaml").exists() and not nothing_computed(cell.folder)

    def _trained(self, cell: Cell, verb: Any) -> dict[str, float]:
        """Train, or go on, in the cell's folder, an ordinary run's; minutes and images that it took."""
        last = cell.folder / "checkpoints" / "last.ckpt"
        done = (cell.folder / "results.json").exists() or (cell.folder / SCORES).exists()
        if not done:
            untimed = {"timed": False} if verb is distill else {}  # a table has no place for it
            verb.run(replace(cell.config, resume=self._begun(cell)), **untimed)
        if not last.exists():  # dropped when the run was scored
            return {}
        standing = checkpoint.standing(last)
        return {"minutes": standing["spent"] / 60, "images": standing["total_steps"] * cell.config.training.batch_size}

    def _embedded(self, encoder: Encoder, cell: Cell) -> Embedded:
        """Both splits as the student sees them, beside its teacher."""
        device = open_device(self.device)
        encoder = encoder.eval().to(device).to(memory_format=torch.channels_last)
        test = self.splits.test
        assert test is not None

        def rows(encode: Callable, images: ImageSet) -> Embeddings:
            view = EvaluationView(encoder.preprocessing)
            return embed.embed(encode, images, view=view, device=device, batch_size=self.batch_size,
                               workers=self.workers, on_skip=self._skip(cell))  # fmt: skip

        its_train, its_test = rows(encoder, self.splits.train), rows(encoder, test)
        projected = None
        into = [kept for kept in load_projectors(cell.folder / "student") if kept.about.space == "teacher"]
        if "asymmetric_nearest_neighbour" in self.evaluations and len(into) == 1:
            projected = rows(torch.nn.Sequential(encoder, into[0].module.to(device)), test)
        teacher = self.embedded_teacher
        if its_train.ids == teacher.train.ids and its_test.ids == teacher.test.ids:
            return Embedded(
                train=its_train, test=its_test, teacher=teacher.teacher, projected=projected, device=self.where
            )
        models = side_by_side({"teacher": teacher.train, "student": its_train},
                              {"teacher": teacher.test, "student": its_test},
                              projected={} if projected is None else {"student": projected},
                              device=self.where)  # fmt: skip
        return models["student"]

    def _skip(self, cell: Cell) -> Callable[[Skipped], Any]:
        strict = getattr(cell.config, "strict", False)
        return refuse_skipped if strict else lambda skipped: print(f"skipped {skipped.id}: {skipped.kind}")


@contextlib.contextmanager
def _here_alone(place: Path, *, wait: bool) -> Iterator[None]:
    """What is made at this place is made by this process, until the block ends.

    Raises: Elsewhere if another one is at it, and there is to be no waiting.
    """
    with alone(place.parent, place.name, wait=wait) as ours:
        if not ours:
            raise Elsewhere
        yield


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_scores(file: Path) -> dict[str, Any]:
    """What scores.json holds.

    Raises: Refusal if somebody has spoilt it.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as trouble:
        raise Refusal(f"expected JSON in {file}, got {trouble}: remove it, and it is made again") from None


def _of(protocols: dict[str, Any], evaluations: Sequence[str]) -> dict[str, Any]:
    """The protocols of those evaluations: a new evaluation, or another's option, leaves scores as they were."""
    return {name: protocols[name] for name in evaluations if name in protocols}


def _compared(config: Any) -> Any:
    """A configuration as scores.json keeps it: without where it lies and whether it was continued."""
    values = plain(config)
    return {name: value for name, value in values.items() if name not in ("out", "resume")}
