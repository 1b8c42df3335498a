"""What the doctor found, as a person reads it: a heading, then a table of short lines, 80 columns wide.

Each function takes its part of the findings, laid out as `compress_ssl.doctor` documents them.
"""

from __future__ import annotations

import textwrap
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def data(found: dict[str, Any]) -> list[RenderableType]:
    """Images that there are, that can be used, that are there twice; their sizes and labels."""
    table = _table()
    for name, split in found["splits"].items():
        seen = "all" if split["looked_at"] == split["images"] else number(split["looked_at"])
        table.add_row(
            f"{name} images", f"{number(split['images'])}; looked at {seen}, usable {number(split['usable'])}"
        )
    table.add_row("unusable", _unusable(found))
    exact, near = found["exact_duplicates"], found["near_duplicates"]
    told = f"{plural(exact['copies'], 'copy', 'copies') if exact['copies'] else 'no copies'} among all images"
    if exact["copies"]:
        told += f", in {plural(exact['groups'], 'group')}"
    told += _also(exact, "other_label", "with several labels") + _also(exact, "leaks", "of test in train")
    table.add_row("same file", told + _first(exact["first"]))
    table.add_row("same to the eye", _near(near, partly=found["looked_at"] < found["images"]))
    if found["short_side"]:
        sides, pixels = found["short_side"], found["megapixels"]
        table.add_row("short side", f"{_spread(sides)} px")
        table.add_row("megapixels", _spread(pixels))
        if len(set(sides.values())) > 1:
            table.add_row("", "(smallest, 5 % below, median, 95 % below, largest)")
        if found["share_below_input"] is not None:
            below = percent(found["share_below_input"]) if found["share_below_input"] else "none"
            told = f"{below} of them {'are' if below == 'none' else 'have a short side'} below the input of"
            table.add_row("too small", f"{told} {found['input_size']} px")
    formats = ", ".join(f"{percent(count / sum(found['formats'].values()))} {kind}"
                        for kind, count in found["formats"].items())  # fmt: skip
    table.add_row("format", formats or "–")
    table.add_row("labels", _labels(found["labels"]))
    return [_heading("Data", found["name"]), table]


def teacher(found: dict[str, Any]) -> list[RenderableType]:
    """Its space: cosines, directions, neighbours."""
    table = _table()
    size = f", input {found['input_size']} px" if found["input_size"] else ""
    table.add_row("embeddings", f"{'stored' if found['stored'] else 'computed'}, width {found['width']}{size}")
    if _costs(found):
        table.add_row("size", _costs(found))
    cosine, warm, bank = found["cosine"], found["temperature"], found["bank"]
    if cosine is not None:
        told = f"neighbours of {number(found['queries'])} held-out images among {number(found['gallery'])} others"
        table.add_row("looked at", told)
        low, *_, high = cosine["quantiles"].values()
        told = f"cosine {cosine['mean']:.2f} ± {cosine['std']:.2f}, 98 % from {low:.2f} to {high:.2f}"
        told += ", without their mean" if found["centred"] else ""
        table.add_row("random pairs", told)
        table.add_row("directions", f"{found['effective_dimension']:.1f} of {found['width']} are in use, in effect")
    if warm is not None:
        if warm["suggested"] is None:
            table.add_row("temperature", f"none to suggest: {warm['why_not']}")
        else:
            told = f"{warm['suggested']:.2g}: a query has {percent(warm['share'])} of the anchors as neighbours"
            table.add_row("temperature", told)
        table.add_row("", f"the paper's {warm['default']:g}: {percent(warm['default_share'])}")
    if bank is not None:
        told = f"{number(bank['suggested'])} anchors, {bank['neighbours']:.0f} of them neighbours of a query"
        table.add_row("bank", told)
        table.add_row("", ", ".join(f"{memory(count)} as {dtype}" for dtype, count in bank["bytes"].items()))
    if found["nearest_neighbour"] is not None:
        told = f"{percent(found['nearest_neighbour'])}; a student seldom gets beyond"
        table.add_row("1-NN accuracy", told)
    return [_heading("Teacher", found["spec"]), table]


def student(found: dict[str, Any]) -> list[RenderableType]:
    """Its size, beside the teacher's."""
    table = _table()
    table.add_row("embeddings", f"width {found['width']}, input {found['input_size']} px")
    table.add_row("size", _costs(found))
    shares = ("parameter_share", "parameters"), ("multiply_add_share", "multiply-adds")
    if any(found[share] is not None for share, _ in shares):
        told = [f"{percent(found[share])} of the {noun}" for share, noun in shares if found[share] is not None]
        table.add_row("of the teacher", ", ".join(told))
    table.add_row("trainable here", "yes" if found["unsafe"] is None else f"no: {found['unsafe']}")
    return [_heading("Student", found["spec"]), table]


SPEEDS = {
    "loader": "reading images",
    "loader_stored": "… at the student's size",
    "loader_embed": "… with views to store",
    "teacher": "the teacher alone",
    "step_alone": "student's step alone",
    "step_stored": "all, teacher's rows stored",
    "step_live": "all, teacher computing",
}
WAITS = {
    "data": "reading",
    "momentum": "slow copy",
    "objective": "bank",
}  # of a step; other parts are called as they are
PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16"}


def speed(found: dict[str, Any]) -> list[RenderableType]:
    """Measured images a second, and what a step waits for."""
    table = _table()
    for part, told in SPEEDS.items():
        if found.get(part) is None:
            continue
        error = "" if found[part]["error"] is None else f" ± {percent(found[part]['error'])}"
        waits = (found.get(f"parts_{part.removeprefix('step_')}") or {}) if part.startswith("step_") else {}
        longest = sorted(((share, name) for name, share in waits.items() if share >= 0.01), reverse=True)
        shares = ", ".join(f"{WAITS.get(name, name)} {percent(share)}" for share, name in longest[:4])
        table.add_row(told, f"{rate(found[part]['images_per_second'])} images/s{error}")
        if shares:
            table.add_row("", shares)
    precision = PRECISIONS.get(found["precision"], found["precision"])
    how = f"{found['device']}, {precision}, {plural(found['workers'], 'reading process', 'reading processes')}"
    size = f", batches of {found['batch_size']}" if found["step_alone"] else ""
    return [_heading("Speed", how + size), table]


def forecast(found: dict[str, Any]) -> list[RenderableType]:
    """Hours, disk, memory."""
    table = _table()
    live, stored = found["live"], found["stored"]
    if live is not None:
        table.add_row("teacher computing", duration(live["hours"]))
    told = "" if stored["train_hours"] is None else duration(stored["hours"])
    if stored["embed_hours"]:
        embedding = f"{duration(stored['embed_hours'])} to embed {found['views']} + 1 views of each image"
        told = f"{told}, of which {embedding}" if told else embedding
    if told:
        table.add_row("rows stored", told)
    if found["table_bytes"] is not None:
        table.add_row("disk", f"{memory(found['table_bytes'])} for the rows; {memory(found['free_disk'])} free here")
    parts = found["memory"]
    if parts is not None:
        told = f"{memory(parts['whole'])}: weights {memory(parts['weights'])}, bank {memory(parts['bank'])}"
        if parts["activations"] is not None:
            told += f", activations {memory(parts['activations'])}"
        table.add_row("memory", told)
        if found["free_memory"] is not None:
            table.add_row("", f"{memory(found['free_memory'])} free")
    if not table.row_count:
        return []
    about = f"{found['epochs']:g} epochs of {number(found['images'])} images, scoring not counted"
    return [_heading("Forecast", about), table]


def advice(found: list[dict[str, Any]], left_out: list[str]) -> list[RenderableType]:
    """What to change, most important first; what was not looked at."""
    lines: list[RenderableType] = [_heading("What to change first", "")]
    for place, one in enumerate(found, start=1):
        # no table: it fills its lines with blanks, and a command that is copied must end in its backslash
        first, *more = textwrap.wrap(one["do"], LINE)
        told = Text.assemble(f"{place:4}. ", ("\n      ".join([first, *more]), "bold"))
        command = one["command"] and _command(one["command"]).splitlines()
        for text, style in ((textwrap.wrap(one["because"], LINE), ""), (command or [], "cyan")):
            told.append("".join(f"\n      {line}" for line in text), style)
        lines.append(told)
    if not found:
        lines.append(Text("  nothing that these numbers ask for"))
    if left_out:
        lines.append(Text(f"\nLeft out: {'; '.join(left_out)}.", style="dim"))
    return lines


# ---- words -----------------------------------------------------------------------------------------------------------


def number(count: float) -> str:
    """
    >>> number(50000)
    '50 000'
    """
    return f"{round(count):,}".replace(",", " ")


def plural(count: int, one: str, many: str | None = None) -> str:
    """
    >>> plural(2, "copy", "copies")
    '2 copies'
    """
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """
    >>> percent(0.1234), percent(0.00012), percent(1.0)
    ('12 %', '0.012 %', '100 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %"


def rate(value: float) -> str:
    """
    >>> rate(4.321), rate(4321.0)
    ('4.3', '4 321')
    """
    return f"{value:.2g}" if value < 10 else number(value)


def memory(count: float) -> str:
    """
    >>> memory(1234567890)
    '1.2 GB'
    """
    for unit, each in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= each:
            value = count / each
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def duration(hours: float) -> str:
    """
    >>> duration(0.01), duration(0.5), duration(30.0), duration(200.0)
    ('36 s', '30 min', '30 h', '8.3 days')
    """
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    if hours < 2:
        return f"{60 * hours:.0f} min"
    if hours < 72:
        return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"
    return f"{hours / 24:.1f} days"


def _command(command: str) -> str:
    """The command in lines that a terminal need not break, so that it can be copied as it stands.

    >>> print(_command("compress-ssl embed --encoder runs/teacher --data photos --views 4 --workers 2 --out table"))
    compress-ssl embed --encoder runs/teacher --data photos --views 4 \\
      --workers 2 --out table
    """
    lines = [""]
    for place, part in enumerate(command.split(" --")):
        word = f" --{part}" if place else part
        if len(lines[-1]) + len(word) > LINE - 2 and lines[-1].strip():
            lines[-1] += " \\"
            word = f" {word}"
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def _heading(title: str, about: str) -> Text:
    return Text.assemble("\n", (title, "bold cyan"), f"  {about}" if about else "")


LINE = 74  # letters of a line of advice


def _table() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    add = table.add_row
    table.add_row = lambda *cells: add("", *cells)  # type: ignore[method-assign]
    return table


def _unusable(found: dict[str, Any]) -> str:
    if not found["unusable"]:
        return "none" if found["looked_at"] == found["images"] else "none among those looked at"
    told = []
    for kind in found["unusable"]:
        expected = f", about {number(kind['expected'])} in all" if kind["expected"] > kind["count"] else ""
        told.append(f"{number(kind['count'])} {kind['kind']}{expected} ({_names(kind['first'], kind['count'])})")
    return "\n".join(told)


def _near(near: dict[str, Any], *, partly: bool) -> str:
    if near["compared"] < 2:
        return f"not compared: {plural(near['too_small'], 'image')} of fewer than 32 px"
    told = plural(near["copies"], "more copy", "more copies") if near["copies"] else "no more copies"
    told += f" among {number(near['compared'])}" if partly else ""
    told += _also(near, "mirrored", "of them mirrored") + _also(near, "leaks", "of test in train")
    if partly and near["copies"]:
        told += f"; in all about {number(near['expected_copies'])}" + (
            f", {number(near['expected_leaks'])} of test" if near["leaks"] else ""
        )
    return told + _first(near["first"])


def _also(found: dict[str, Any], name: str, what: str) -> str:
    return f", {number(found[name])} {what}" if found[name] else ""


def _first(pairs: list[list[str]]) -> str:
    return "".join(f"\n  {_short(one)} = {_short(other)}" for one, other in pairs)


def _names(ids: list[str], count: int) -> str:
    return ", ".join(map(_short, ids)) + (", …" if count > len(ids) else "")


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"


def _spread(values: dict[str, float]) -> str:
    told = [f"{value:.3g}" if value < 1000 else number(value) for value in values.values()]
    return told[0] if len(set(told)) == 1 else ", ".join(told)


def _labels(found: dict[str, Any]) -> str:
    if not found["classes"]:
        return "none; none are needed"
    small, large = found["smallest"], found["largest"]
    if small["images"] == large["images"]:
        return f"{plural(found['classes'], 'class', 'classes')} of {plural(small['images'], 'image')} each"
    return (f"{plural(found['classes'], 'class', 'classes')}, from {number(small['images'])} ({_short(small['name'])}) "
            f"to {number(large['images'])} ({_short(large['name'])})")  # fmt: skip


def _costs(found: dict[str, Any]) -> str:
    told = [] if found["parameters"] is None else [f"{_rounded(found['parameters'])} parameters"]
    if found["multiply_adds"] is not None:
        told.append(f"{_rounded(found['multiply_adds'])} multiply-adds an image")
    return ", ".join(told)


def _rounded(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
