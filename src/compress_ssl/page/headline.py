"""Numbers -> the sentences that open the page: a worse student is called worse, no number, no claim."""

from __future__ import annotations

from collections.abc import Sequence

from compress_ssl.page.folders import Folder
from compress_ssl.page.models import Comparison, Model
from compress_ssl.page.words import against, and_list, finite, of_ten, percent, whole


def heading(comparisons: Sequence[Comparison], names: Sequence[str]) -> str:
    """Of the page: after the data, or after the runs where nothing is scored yet."""
    if comparisons:
        return f"Compressed encoders on {and_list(list(dict.fromkeys(one.data for one in comparisons)))}"
    return f"Training of {and_list(names) if len(names) < 3 else f'{len(names)} runs'}"


def sentence(one: Comparison) -> str:
    """What the best student kept of its teacher, and at what size."""
    teacher = one.teacher
    if teacher is None:
        score = one.models[0].value("nearest_neighbour")
        said = f"reaches {percent(score)} in 1-NN" if score is not None else "was scored"
        return f"{one.models[0].name} {said} on {one.data}; no other model was scored beside it."
    student = one.best()
    score, bar = student.value("nearest_neighbour"), teacher.value("nearest_neighbour")
    overlap = student.value("neighbour_overlap_10")
    costs = []
    for size, noun in (("parameters", "parameters"), ("flops", "multiply-adds")):
        words = against(student.entry.get(size), teacher.entry.get(size), "more", "fewer")
        if words:
            costs.append(f"as many {noun}" if words == "the same" else f"{words} {noun}")
    cost = f" with {and_list(costs)}" if costs else ""
    weak = overlap is not None and overlap < 0.5
    if score is not None and bar:
        kept = score / bar
        if percent(score) != percent(bar) and kept > 1:
            said = f"{student.name} scores above its teacher in 1-NN ({percent(score)} against {percent(bar)}){cost}"
        else:
            share = "only " * (kept < 0.9) + percent(min(kept, 1.0))
            whose = "the teacher" if len(one.teachers) == 1 else teacher.name
            said = f"{student.name} keeps {share} of {whose}’s 1-NN accuracy{cost}"
        if overlap is not None:
            join = "but shares only" if weak and kept >= 0.9 else "and shares only" if weak else "and shares"
            theirs = (
                "its 10 nearest neighbours"
                if len(one.teachers) == 1
                else (f"its {len(one.teachers)} teachers’ 10 nearest neighbours, on average")
            )
            said += f", {join} {of_ten(overlap)} of {theirs}"
    elif overlap is not None:
        said = f"{student.name} shares {'only ' * weak}{of_ten(overlap)} of the teacher’s 10 nearest neighbours{cost}"
    else:
        return f"{student.name} stands beside its teacher{cost}; how much it kept was not measured."
    return said + "." + ahead(one, student)


def ahead(one: Comparison, student: Model) -> str:
    """A second sentence where another student has the better 1-NN."""
    score = student.value("nearest_neighbour")
    other = max(one.students, key=lambda model: model.value("nearest_neighbour") or 0.0)
    best = other.value("nearest_neighbour")
    if score is None or best is None or percent(best) == percent(score):
        return ""
    shared = other.value("neighbour_overlap_10")
    tail = f" but it shares {of_ten(shared)}" if shared is not None else ""
    return f" By 1-NN, {other.name} is ahead ({percent(best)} against {percent(score)}){tail}."


def progress(folder: Folder, *, name: str) -> str:
    """How far a run without results has come."""
    last = max(folder.train + folder.validation, key=lambda row: row["step"], default=None)
    if last is None:
        return f"{name} has no results and no measurement yet."
    facts = []
    if folder.train:
        facts.append(f"a loss of {folder.train[-1]['loss']:.3g}")
    overlap = finite(folder.validation[-1].get("neighbour_overlap_10")) if folder.validation else None
    if overlap is not None:
        facts.append(f"{of_ten(overlap)} of the teacher’s 10 nearest neighbours kept on held-out images")
    told = f", with {and_list(facts)}" if facts else ""
    return f"{name} has no results yet; last seen at step {whole(last['step'])} (epoch {last['epoch']:.1f}){told}."
