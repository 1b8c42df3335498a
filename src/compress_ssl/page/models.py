"""Results of several folders -> comparisons: a teacher with all of its students, each model once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_ssl.page.folders import Folder
from compress_ssl.page.words import finite, percent


@dataclass
class Model:
    name: str  # as shown: told apart where two folders use one name
    known_as: str  # in its results.json
    entry: dict[str, Any]
    folder: Folder

    def value(self, metric: str) -> float | None:
        """The metric as a fraction, None where it is missing or not a finite number."""
        return finite(self.entry["metrics"].get(metric))

    @property
    def teaches(self) -> bool:
        """Whether it is one of several teachers."""
        return self.entry.get("role") == "teacher"

    @property
    def place(self) -> Path:
        """Its spec as an absolute path, since one folder has many names; `timm/…` is still only like itself."""
        return Path(self.entry.get("spec", self.known_as)).resolve()

    def agrees(self, other: Model) -> bool:
        """Whether both can be one model: no field that both have differs, the measured speed aside."""
        shared = (self.entry.keys() & other.entry.keys()) - {"metrics", "missing", "spec", "images_per_second"}
        ours, theirs = self.entry["metrics"], other.entry["metrics"]
        return (
            (self.known_as, self.place) == (other.known_as, other.place)
            and all(self.entry[name] == other.entry[name] for name in shared)
            and all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())
        )


@dataclass
class Comparison:
    """A teacher, or several, and their students on the same images: one sentence and one table."""

    data: str
    images: dict[str, int]
    models: list[Model]  # a teacher first

    @property
    def teacher(self) -> Model | None:
        return self.models[0] if self.students else None

    @property
    def teachers(self) -> list[Model]:
        """The first one, and whoever else taught the students: a run with several teachers says so of each."""
        return [model for model in self.models[:1] if self.students] + [m for m in self.models[1:] if m.teaches]

    @property
    def students(self) -> list[Model]:
        return [model for model in self.models[1:] if not model.teaches]

    @property
    def several(self) -> bool:
        """Whether the students have more than one teacher: none of them is then the teacher without its name."""
        return len(self.teachers) > 1

    @property
    def shares(self) -> str:
        """What each of several teachers counted in the training, "" where no folder says it."""
        weights = [(teacher.name, finite(teacher.entry.get("weight"))) for teacher in self.teachers]
        return ", ".join(f"{name} {percent(weight)}" for name, weight in weights if weight is not None)

    def best(self) -> Model:
        """The student that shares most neighbours with the teacher (needs no labels), then the best in 1-NN."""
        judges = ("neighbour_overlap_10", "nearest_neighbour")
        return max(self.students, key=lambda model: [model.value(judge) or -1.0 for judge in judges])


def compare(folders: Sequence[Folder]) -> tuple[list[Comparison], dict[tuple[str, str], Model]]:
    """Results of several folders joined where teacher and images are the same.

    A model that two folders scored alike is shown once, with the metrics of both; two models of one name that differ
    are told apart by their folders.

    Returns: comparisons in the order of the folders, and (folder label, name in its results.json) -> model.
    """
    found: list[Comparison] = []
    models: dict[tuple[str, str], Model] = {}
    for folder in folders:
        if folder.results is None:
            continue
        data, images = folder.results["data"], folder.results["images"]
        new = [Model(name, name, entry, folder) for name, entry in folder.results["models"].items()]
        alike = (one for one in found if (one.data, one.images) == (data, images))
        one = next((one for one in alike if one.models[0].agrees(new[0])), None)
        if one is None:
            found.append(one := Comparison(data, images, []))
        for model in new:
            same = next((known for known in one.models if known.agrees(model)), None)
            if same is None:
                one.models.append(same := model)
            else:
                same.entry = {**model.entry, **same.entry, "metrics": model.entry["metrics"] | same.entry["metrics"]}
            models[folder.label, model.known_as] = same
    for one in found:
        times_used = Counter(model.known_as for model in one.models)
        for model in one.models:
            if times_used[model.known_as] > 1:
                model.name = f"{model.known_as} · {model.folder.label}"
    return found, models


def run_names(folders: Sequence[Folder], comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Folder label -> name of its curves: the model that it trained, where the results say which, else the label."""
    trained = {model.place: model.name for one in reversed(comparisons) for model in one.models}
    names = {folder.label: trained.get(folder.path.resolve(), folder.label) for folder in folders}
    times_used = Counter(names.values())
    return {label: name if times_used[name] == 1 else f"{name} · {label}" for label, name in names.items()}
