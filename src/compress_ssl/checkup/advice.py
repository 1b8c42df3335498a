"""Numbers -> what to change first. Each piece of advice follows from a measured number, and says which.

First what would make results wrong, then what would stop a run, then what costs hours, then what costs accuracy.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from compress_ssl.checkup.findings import duration, memory, number, percent, plural, rate

CONVERTIBLE = {"animated", "cmyk", "16-bit", "palette", "transparent"}
LEAKING = 0.001  # share of the test images
REPEATED = 0.01  # share of images that are there again
SMALLEST_INPUT = 32  # pixels; backbones reduce their input 4 to 32 times
FLAT = 5  # directions that a teacher's rows fill
WORTH_STORING = 1.15  # hours live over hours stored
WORTH_A_COMMAND = 0.1  # hours
STARVED = 0.9  # of the speed of a step that never waits for images
FAR = 1.5  # factor between two temperatures that gives other neighbours
SHRUNK_OVER_INPUT = 384 / 224  # `shrink` leaves room for random crops
WORTH_SHRINKING = 1.3  # short side over that of the shrunk copy
HEAVY = 0.25  # share of a step in the comparison with the bank
TABLE = "tables/teacher"  # where the rows are advised to be stored


class Advice(NamedTuple):
    """What to do, the number that says so, and a whole command for a shell, where one does it."""

    do: str
    because: str
    command: str | None = None


def give(found: dict[str, Any], *, plan: dict[str, Any]) -> list[dict[str, str | None]]:
    """Advice, most important first: {"do", "because", "command"}.

    Args:
        found: as `compress_ssl.doctor` documents it.
        plan: what the training was to be: data, teacher, teacher_size, batch_size, views, unusual, workers,
            accelerator, temperature, bank_size, within_batch (it cannot be computed in parts).
    """
    sources = (_wrong, _impossible, _slow, _inaccurate)
    return [one._asdict() for source in sources for one in source(found, plan)]


def embedding(plan: dict[str, Any]) -> str:
    """The command that stores the teacher's rows.

    >>> embedding({"teacher": "runs/my teacher", "data": "photos", "views": 4})
    "compress-ssl embed --encoder 'runs/my teacher' --data photos --views 4 --out tables/teacher"
    """
    words = ["compress-ssl", "embed", "--encoder", plan["teacher"], "--data", plan["data"], "--views", plan["views"]]
    words += _same(plan, size="teacher_size", unusual="unusual", workers="workers", device="accelerator")
    return shlex.join(map(str, [*words, "--out", TABLE]))


def shrinking(plan: dict[str, Any], short_side: int) -> tuple[str, str]:
    """The command that copies the images at this short side, and the name of the copy.

    >>> shrinking({"data": "/disk/photos/"}, 384)
    ('compress-ssl shrink --data /disk/photos/ --short-side 384 --out photos_small', 'photos_small')
    """
    copy = f"{Path(plan['data']).name.removesuffix('.parquet').replace(':', '_') or 'images'}_small"
    words = ["compress-ssl", "shrink", "--data", plan["data"], "--short-side", short_side]
    words += _same(plan, unusual="unusual", workers="workers")
    return shlex.join(map(str, [*words, "--out", copy])), copy


def _same(plan: dict[str, Any], **options: str) -> list[Any]:
    """Options of another verb, for what was asked for here."""
    given = {option: plan.get(name) for option, name in options.items()}
    usual = (None, "auto", "skip")
    return [word for option, value in given.items() if value not in usual for word in (f"--{option}", value)]


def _wrong(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[Advice]:
    data = found["data"]
    exact, near = found["data"]["exact_duplicates"], found["data"]["near_duplicates"]
    tested = data["splits"].get("test", {"images": 0})["images"]
    if exact["leaks"] + near["expected_leaks"] > LEAKING * tested:
        more = max(0, near["expected_leaks"] - near["leaks"])
        because = f"{number(exact['leaks'] + near['leaks'])} of {number(tested)} test images are in the training split"
        because += f" too, {number(exact['leaks'])} of them as the same file"
        because += f", about {number(more)} more among those not looked at" if more else ""
        yield Advice("take these images out of one split", f"{because}: such images score too well")
    broken = sum(kind["count"] for kind in data["unusable"])
    if broken:
        kinds = ", ".join(f"{number(kind['count'])} {kind['kind']}" for kind in data["unusable"])
        strange = sum(kind["count"] for kind in data["unusable"] if kind["kind"] in CONVERTIBLE)
        mend = "mend or remove the unusable images"
        if strange == broken and plan["unusual"] == "skip":
            mend = "use --unusual convert"
        elif strange and plan["unusual"] == "skip":
            mend += ", and use --unusual convert"
        if strange and plan["unusual"] == "skip" and (found["teacher"] or {}).get("stored"):
            mend += ", for the table of rows too, with another --out"
        yield Advice(mend, f"{number(broken)} of {number(data['looked_at'])} cannot be used: {kinds}")
    if exact["other_label"]:
        because = f"{plural(exact['other_label'], 'group')} of identical files carry different labels"
        yield Advice("look at the labels of images that are there twice", because)
    if exact["copies"] > REPEATED * data["images"] or near["copies"] > REPEATED * near["compared"]:
        because = f"{number(exact['copies'])} of {number(data['images'])} images are the same file as another, "
        because += f"{number(near['copies'])} of {number(near['compared'])} the same to the eye: they count twice"
        yield Advice("remove copies", because)


def _impossible(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[Advice]:
    student, speed, forecast = found["student"], found["speed"], found["forecast"]
    if student is not None and student["unsafe"]:
        yield Advice("choose another student, or a GPU", student["unsafe"])
    images = None if forecast is None else forecast["images"]
    if speed is not None and images is not None and plan["batch_size"] > images:
        yield Advice(f"lower --batch-size to {images} or less", f"only {number(images)} images are trained on")
    if forecast is None:
        return
    needed, free = forecast["memory"], forecast["free_memory"]
    if needed is not None and free is not None and needed["whole"] > free:
        largest = max((needed[part] or 0, part) for part in ("weights", "activations", "bank"))[1]
        parts = "lower --batch-size" if plan["within_batch"] else "train with --accumulate 2 or more"
        do = {"activations": parts, "weights": "choose a smaller student or teacher",
              "bank": "train with --objective.bank-dtype int8 or a smaller --objective.bank-size"}[largest]  # fmt: skip
        yield Advice(do, f"{memory(needed['whole'])} are needed and {memory(free)} are free; {largest} take most of it")
    if forecast["table_bytes"] is not None and forecast["table_bytes"] > forecast["free_disk"]:
        needs = f"{forecast['views']} + 1 views take {memory(forecast['table_bytes'])}"
        yield Advice("store fewer views, or on another disk", f"{needs}, free are {memory(forecast['free_disk'])} here")


def _slow(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[Advice]:
    """What gains most comes first."""
    advice = [one for source in (_storing, _reading, _comparing) for one in source(found, plan)]
    for _, one in sorted(advice, key=lambda gained: gained[0], reverse=True):
        yield one


def _storing(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[float, Advice]]:
    forecast, speed = found["forecast"], found["speed"]
    if forecast is None or not forecast["live"] or forecast["table_bytes"] > forecast["free_disk"]:
        return
    if forecast["stored"]["hours"] is None:
        return
    live, stored = forecast["live"]["hours"], forecast["stored"]["hours"]
    if live > WORTH_STORING * stored and live - stored > WORTH_A_COMMAND:
        share = speed["parts_live"].get("teacher", 0.0)
        because = f"the teacher is {percent(share)} of a step: {duration(live)} with it live, {duration(stored)} stored"
        because += f", {duration(forecast['stored']['embed_hours'])} of them embedding"
        because += f"; {memory(forecast['table_bytes'])} of disk"
        do = f"store the teacher's rows once, then train with --teacher {TABLE}"
        yield 1 - stored / live, Advice(do, because, embedding(plan))


def _reading(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[float, Advice]]:
    speed = found["speed"]
    goal = next((speed[part] for part in ("step_alone", "teacher") if speed and speed[part]), None)
    if goal is None:
        return
    loader = (speed["loader_stored"] or speed["loader"])["images_per_second"]
    could = goal["images_per_second"]
    if loader >= STARVED * could:
        return
    what = "the student's step" if speed["step_alone"] else "the teacher"
    because = f"reading gives {rate(loader)} images/s, {what} could take {rate(could)}"
    shrunk = math.ceil(speed["input_size"] * SHRUNK_OVER_INPUT)
    sides = found["data"]["short_side"]
    if sides and sides["median"] > WORTH_SHRINKING * shrunk:
        because += f"; their short side is {number(sides['median'])} px, the input {speed['input_size']}"
        command, copy = shrinking(plan, shrunk)
        do = f"shrink the images once, then use --data {shlex.quote(copy)}"
        yield 1 - loader / could, Advice(do, because, command)
    elif speed["workers"] < speed["cores"]:
        processes = plural(speed["workers"], "process", "processes")
        because += f", with {processes} on {speed['cores']} cores"
        yield 1 - loader / could, Advice(f"raise --workers, up to {speed['cores']}", because)


def _comparing(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[float, Advice]]:
    speed, teacher = found["speed"], found["teacher"]
    share = ((speed or {}).get("parts_stored") or {}).get("objective", 0.0)
    if teacher is None or teacher["bank"] is None:
        return
    bank, enough = min(plan["bank_size"] or 0, teacher["bank"]["suggested"]), teacher["bank"]["enough"]
    if share > HEAVY and enough < bank / 2:
        left = teacher["bank"]["neighbours"] / teacher["bank"]["suggested"] * enough
        because = f"comparing with {number(bank)} anchors is {percent(share)} of a step with stored rows; "
        because += f"{number(enough)} still leave a query {left:.0f} neighbours"
        do = f"try a smaller bank: train with --objective.bank-size {enough}"
        yield share * (1 - enough / bank), Advice(do, because)


def _inaccurate(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[Advice]:
    teacher, student, data = found["teacher"], found["student"], found["data"]
    if teacher is not None and teacher["cosine"] is not None:
        yield from _of_teacher(teacher, data, plan)
    if student is not None:
        share = max(student["multiply_add_share"] or 0.0, student["parameter_share"] or 0.0)
        if share >= 1:
            of = {"parameter_share": "parameters", "multiply_add_share": "multiply-adds"}  # None: not known
            known = [key for key in of if student[key] is not None]
            shares = [f"{percent(student[key])} of the teacher's {of[key]}" for key in known]
            yield Advice("choose a smaller student, or a larger teacher", f"the student has {' and '.join(shares)}")
    below, sides = data["share_below_input"], data["short_side"]
    if below is None or below <= 0.5:
        return
    size = max(SMALLEST_INPUT, sides["median"])
    if size < 0.9 * data["input_size"]:
        because = (
            f"{percent(below)} of the images are smaller than the input of {data['input_size']} px, the median is "
        )
        because += (
            f"{sides['median']}: a student at {size} px costs {percent((size / data['input_size']) ** 2)} as much"
        )
        yield Advice(f"try --student-size {size}", because)


def _of_teacher(teacher: dict[str, Any], data: dict[str, Any], plan: dict[str, Any]) -> Iterator[Advice]:
    warm, bank, planned = teacher["temperature"], teacher["bank"], plan["temperature"]
    right = teacher["nearest_neighbour"]
    classes = data["labels"]["classes"]
    if right is not None and teacher["queries"] >= 100 and right < 2 / classes:
        because = f"its nearest neighbours are right in {percent(right)}, by chance it would be {percent(1 / classes)}"
        yield Advice("choose another teacher", because)
    elif teacher["effective_dimension"] < FLAT and teacher["gallery"] >= 100:
        because = f"its rows fill {teacher['effective_dimension']:.1f} directions, random pairs have a cosine of "
        because += f"{teacher['cosine']['mean']:.2f}: it hardly tells these images apart"
        yield Advice("choose another teacher, or check its weights", because)
    suggested = warm["suggested"]
    if isinstance(planned, float) and suggested and not 1 / FAR < planned / suggested < FAR:
        because = f"at {suggested:.2g} a query has {percent(warm['share'])} of the anchors as neighbours"
        if planned == warm["default"] and bank is not None:
            neighbours = number(max(1, warm["default_share"] * bank["suggested"]))
            because += f", at the paper's {planned:g} {percent(warm['default_share'])} "
            because += f"({neighbours} of {number(bank['suggested'])})"
        else:
            because += f"; {planned:g} is {planned / suggested:.2g} times as much"
        yield Advice("train with --objective.temperature auto", because)
