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
    if one.several:
        return beside_each(one, student) + ahead(one, student)
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
            said = f"{student.name} keeps {share} of the teacher’s 1-NN accuracy{cost}"
        if overlap is not None:
            join = "but shares only" if weak and kept >= 0.9 else "and shares only" if weak else "and shares"
            said += f", {join} {of_ten(overlap)} of its 10 nearest neighbours"
    elif overlap is not None:
        said = f"{student.name} shares {'only ' * weak}{of_ten(overlap)} of the teacher’s 10 nearest neighbours{cost}"
    else:
        return f"{student.name} stands beside its teacher{cost}; how much it kept was not measured."
    return said + "." + ahead(one, student)


def beside_each(one: Comparison, student: Model) -> str:
    """Of a student of several teachers: each comparison names the teacher that it is with."""
    score = student.value("nearest_neighbour")
    measured = [(teacher, bar) for teacher in one.teachers if (bar := teacher.value("nearest_neighbour")) is not None]
    sides: dict[str, list[str]] = {}  # above, level with, below -> teachers, the best first
    for teacher, bar in sorted(measured, key=lambda pair: -pair[1]):
        if score is None:
            break
        side = "level with" if percent(bar) == percent(score) else "below" if bar > score else "above"
        sides.setdefault(side, []).append(f"{teacher.name} ({percent(bar)})")
    if score is not None:
        placed = and_list([f"{side} {and_list(sides[side])}" for side in sides])
        said = [f"{student.name} reaches {percent(score)} in 1-NN" + f", {placed}" * bool(placed)]
    else:
        said = [f"{student.name} stands beside its {len(one.teachers)} teachers"]
    overlap = student.value("neighbour_overlap_10")
    if overlap is not None:
        each = [(teacher.name, student.value(f"neighbour_overlap_10_{teacher.known_as}")) for teacher in one.teachers]
        shared = and_list([f"{of_ten(found)} of {name}’s" for name, found in each if found is not None])
        only = "only " * (overlap < 0.5)
        said.append(f"It shares {only}{of_ten(overlap)} of its teachers’ 10 nearest neighbours, as a weighted mean"
                    + f": {shared}" * bool(shared))  # fmt: skip
    elif score is None:
        said[0] += "; how much it kept was not measured"
    sizes: dict[str, list[str]] = {}  # the same words are said once
    for teacher in one.teachers:
        costs = []
        for size, noun in (("parameters", "parameters"), ("flops", "multiply-adds")):
            words = against(student.entry.get(size), teacher.entry.get(size), "more", "fewer")
            if words:
                costs.append(f"as many {noun}" if words == "the same" else f"{words} {noun}")
        if costs:
            sizes.setdefault(and_list(costs), []).append(teacher.name)
    if sizes:
        told = [f"eside {and_list(names)} it has {costs}" for costs, names in sizes.items()]
        said.append("B" + ", b".join(told))
    return ". ".join(said) + "."


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
        several = any(name.startswith("neighbour_overlap_10_") for name in folder.validation[-1])
        whose, mean = ("teachers’", ", as a weighted mean,") if several else ("teacher’s", "")
        facts.append(f"{of_ten(overlap)} of the {whose} 10 nearest neighbours{mean} kept on held-out images")
    told = f", with {and_list(facts)}" if facts else ""
    return f"{name} has no results yet; last seen at step {whole(last['step'])} (epoch {last['epoch']:.1f}){told}."
