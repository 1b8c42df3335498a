"""Numbers -> what to change first. Each piece of advice follows from a measured number, and says which.

First what would make results wrong, then what would stop a run, then what costs hours, then what costs accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

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


def give(found: dict[str, Any], *, plan: dict[str, Any]) -> list[dict[str, str]]:
    """Advice, most important first: {"do", "because"}.

    Args:
        found: as `compress_ssl.doctor` documents it.
        plan: what the training was to be: data, teacher, batch_size, views, unusual, temperature, bank_size.
    """
    sources = (_wrong, _impossible, _slow, _inaccurate)
    return [{"do": do, "because": because} for source in sources for do, because in source(found, plan)]


def _wrong(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    data = found["data"]
    exact, near = found["data"]["exact_duplicates"], found["data"]["near_duplicates"]
    tested = data["splits"].get("test", {"images": 0})["images"]
    if exact["leaks"] + near["expected_leaks"] > LEAKING * tested:
        more = max(0, near["expected_leaks"] - near["leaks"])
        because = f"{number(exact['leaks'] + near['leaks'])} of {number(tested)} test images are in the training split"
        because += f" too, {number(exact['leaks'])} of them as the same file"
        because += f", about {number(more)} more among those not looked at" if more else ""
        yield "take these images out of one split", f"{because}: such images score too well"
    broken = sum(kind["count"] for kind in data["unusable"])
    if broken:
        kinds = ", ".join(f"{number(kind['count'])} {kind['kind']}" for kind in data["unusable"])
        strange = sum(kind["count"] for kind in data["unusable"] if kind["kind"] in CONVERTIBLE)
        mend = "mend or remove the unusable images"
        if strange == broken and plan["unusual"] == "skip":
            mend = "use --unusual convert"
        elif strange and plan["unusual"] == "skip":
            mend += ", and use --unusual convert"
        yield mend, f"{number(broken)} of {number(data['looked_at'])} cannot be used: {kinds}"
    if exact["other_label"]:
        because = f"{plural(exact['other_label'], 'group')} of identical files carry different labels"
        yield "look at the labels of images that are there twice", because
    if exact["copies"] > REPEATED * data["images"] or near["copies"] > REPEATED * near["compared"]:
        because = f"{number(exact['copies'])} of {number(data['images'])} images are the same file as another, "
        because += f"{number(near['copies'])} of {number(near['compared'])} the same to the eye: they count twice"
        yield "remove copies", because


def _impossible(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    student, speed, forecast = found["student"], found["speed"], found["forecast"]
    if student is not None and student["unsafe"]:
        yield "choose another student, or a GPU", student["unsafe"]
    images = None if forecast is None else forecast["images"]
    if speed is not None and images is not None and plan["batch_size"] > images:
        yield f"lower --batch-size to {images} or less", f"only {number(images)} images are trained on"
    if forecast is None:
        return
    needed, free = forecast["memory"], forecast["free_memory"]
    if needed is not None and free is not None and needed["whole"] > free:
        largest = max((needed[part] or 0, part) for part in ("weights", "activations", "bank"))[1]
        do = {"activations": "use --accumulate 2 or more", "weights": "choose a smaller student or teacher",
              "bank": "use --objective.bank-dtype int8 or a smaller --objective.bank-size"}[largest]  # fmt: skip
        yield do, f"{memory(needed['whole'])} are needed and {memory(free)} are free; {largest} take most of it"
    if forecast["table_bytes"] is not None and forecast["table_bytes"] > forecast["free_disk"]:
        needs = f"{forecast['views']} + 1 views take {memory(forecast['table_bytes'])}"
        yield "store fewer views, or on another disk", f"{needs}, free are {memory(forecast['free_disk'])} here"


def _slow(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What gains most comes first."""
    advice = [one for source in (_storing, _reading, _comparing) for one in source(found, plan)]
    for _, do, because in sorted(advice, reverse=True):
        yield do, because


def _storing(found: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[float, str, str]]:
    forecast, speed = found["forecast"], found["speed"]
    if forecast is None or not forecast["live"] or forecast["table_bytes"] > forecast["free_disk"]:
        return
    live, stored = forecast["live"]["hours"], forecast["stored"]["hours"]
    if live > WORTH_STORING * stored and live - stored > WORTH_A_COMMAND:
        share = speed["parts_live"].get("teacher", 0.0)
        because = f"the teacher is {percent(share)} of a step: {duration(live)} with it live, {duration(stored)} stored"
        because += f", {duration(forecast['stored']['embed_hours'])} of them embedding"
        because += f"; {memory(forecast['table_bytes'])} of disk"
        yield 1 - stored / live, f"store the teacher's rows first: embed --views {forecast['views']}", because


def _reading(found: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[float, str, str]]:
    speed = found["speed"]
    goal = next((speed[part] for part in ("step_alone", "teacher") if speed and speed[part]), None)
    if goal is None:
        return
    loader, could = speed["loader"]["images_per_second"], goal["images_per_second"]
    if loader >= STARVED * could:
        return
    what = "the student's step" if speed["step_alone"] else "the teacher"
    because = f"reading gives {rate(loader)} images/s, {what} could take {rate(could)}"
    shrunk = math.ceil(speed["input_size"] * SHRUNK_OVER_INPUT)
    sides = found["data"]["short_side"]
    if sides and sides["median"] > WORTH_SHRINKING * shrunk:
        because += f"; their short side is {number(sides['median'])} px, the input {speed['input_size']}"
        yield 1 - loader / could, f"shrink the images once: shrink --short-side {shrunk}", because
    elif speed["workers"] < speed["cores"]:
        processes = plural(speed["workers"], "process", "processes")
        yield 1 - loader / could, "raise --workers", f"{because}, with {processes} on {speed['cores']} cores"


def _comparing(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[float, str, str]]:
    speed, teacher = found["speed"], found["teacher"]
    share = ((speed or {}).get("parts_stored") or {}).get("objective", 0.0)
    bank = min(plan["bank_size"] or 0, teacher["bank"]["suggested"]) if teacher else 0
    enough = teacher["bank"]["enough"] if teacher else 0
    if share > HEAVY and enough < bank / 2:
        left = teacher["bank"]["neighbours"] / teacher["bank"]["suggested"] * enough
        because = f"comparing with {number(bank)} anchors is {percent(share)} of a step with stored rows; "
        because += f"{number(enough)} still leave a query {left:.0f} neighbours"
        yield share * (1 - enough / bank), f"try a smaller bank: --objective.bank-size {enough}", because


def _inaccurate(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    teacher, student, data = found["teacher"], found["student"], found["data"]
    if teacher is not None:
        yield from _of_teacher(teacher, data, plan)
    if student is not None:
        share = max(student["multiply_add_share"] or 0.0, student["parameter_share"] or 0.0)
        if share >= 1:
            because = f"the student has {percent(student['parameter_share'])} of the teacher's parameters and "
            because += f"{percent(student['multiply_add_share'])} of its multiply-adds"
            yield "choose a smaller student, or a larger teacher", because
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
        yield f"try --student-size {size}", because


def _of_teacher(teacher: dict[str, Any], data: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    warm, bank, planned = teacher["temperature"], teacher["bank"], plan["temperature"]
    right = teacher["nearest_neighbour"]
    classes = data["labels"]["classes"]
    if right is not None and teacher["queries"] >= 100 and right < 2 / classes:
        because = f"its nearest neighbours are right in {percent(right)}, by chance it would be {percent(1 / classes)}"
        yield "choose another teacher", because
    elif teacher["effective_dimension"] < FLAT and teacher["gallery"] >= 100:
        because = f"its rows fill {teacher['effective_dimension']:.1f} directions, random pairs have a cosine of "
        because += f"{teacher['cosine']['mean']:.2f}: it hardly tells these images apart"
        yield "choose another teacher, or check its weights", because
    suggested = warm["suggested"]
    if isinstance(planned, float) and suggested and not 1 / FAR < planned / suggested < FAR:
        because = f"at {suggested:g} a query has {percent(warm['share'])} of the anchors as neighbours"
        if planned == warm["default"]:
            neighbours = number(max(1, warm["default_share"] * bank["suggested"]))
            because += f", at the paper's {planned:g} {percent(warm['default_share'])} "
            because += f"({neighbours} of {number(bank['suggested'])})"
        else:
            because += f"; {planned:g} is {planned / suggested:.2g} times as much"
        yield "use --objective.temperature auto", because
    if plan["bank_size"] and plan["bank_size"] > bank["suggested"]:
        because = "a bank never holds more anchors than there are training images; nothing needs to be set"
        do = f"count on {number(bank['suggested'])} anchors, not {number(plan['bank_size'])}"
        yield do, because
