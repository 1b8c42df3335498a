"""Tables as files and on a terminal: Markdown, one self-contained HTML page, rich."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.table import Table as RichTable
from rich.text import Text

from compress_ssl.matrix.summary import Line, Summary

STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2330;
background:#fff}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}th,td{padding:.35rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid #dde2ea}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}tr.first td{border-top:2px solid #8a94a6}
tr.teacher td{color:#596375}b{font-weight:700}figure{margin:2rem 0}svg{max-width:100%;height:auto}
p{margin:.4rem 0;color:#596375}"""


def markdown(summaries: Sequence[Summary], missing: Sequence[str] = (), figures: Sequence[str] = ()) -> str:
    """All tables as Markdown.

    Args:
        missing: sentences about what could not be done.
        figures: file names of drawings.
    """
    parts = []
    for one in summaries:
        rows = [one.headings, [":--", ":--", *["--:"] * (len(one.headings) - 2)]]
        rows += [[f"**{cell}**" if bold else cell for cell, bold in _cells(one, line)] for line in one.lines]
        table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
        parts += [f"## {one.dataset}", table, *one.notes]
    parts += [f"![{name}]({name})" for name in figures]
    if missing:
        parts.append("\n".join(["Missing:", *(f"- {one}" for one in missing)]))
    return "\n\n".join(parts) + "\n"


def page(summaries: Sequence[Summary], missing: Sequence[str] = (), drawings: Sequence[str] = ()) -> str:
    """All tables as one HTML file that loads nothing.

    Args:
        drawings: SVG.
    """
    body = []
    for one in summaries:
        body += [f"<h2>{escape(one.dataset)}</h2>", '<div class="wide"><table>']
        body.append(f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in one.headings)}</tr>")
        before = None
        for line in one.lines:
            cells = "".join(f"<td>{f'<b>{escape(cell)}</b>' if bold else escape(cell)}</td>"
                            for cell, bold in _cells(one, line))  # fmt: skip
            kinds = ["teacher"] * (line.objective == "teacher") + ["first"] * (line.student != before)
            body.append(f'<tr class="{" ".join(kinds)}">{cells}</tr>')
            before = line.student
        body += ["</table></div>", *(f"<p>{escape(note)}</p>" for note in one.notes)]
    body += [f"<figure>{drawing}</figure>" for drawing in drawings]
    body += [f"<p>Missing: {escape(one)}</p>" for one in missing]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>compress-ssl benchmark</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>Benchmark</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


MAIN = ("nearest_neighbour", "linear_probe", "cluster_alignment", "neighbour_overlap_10")  # in a terminal


def rich_table(summary: Summary) -> RichTable:
    """As a terminal shows it: narrower, each student's name above its rows; of many scores the main ones."""
    main = [number for number, metric in enumerate(summary.metrics) if metric in MAIN]
    shown = range(len(summary.metrics)) if len(summary.metrics) <= len(MAIN) else main[: len(MAIN)]
    table = RichTable(title=summary.dataset, header_style="bold", title_justify="left")
    table.add_column("objective", overflow="fold")  # long names go on in the next line, numbers stay whole
    for name in ("n", *(summary.headings[3 + number] for number in shown)):
        table.add_column(name, justify="right", no_wrap=True)
    if len(shown) < len(summary.metrics):
        table.caption = "more scores are in table.md"
    before = None
    for line in summary.lines:
        (student, _), _, count, *scores = _cells(summary, line)
        if line.student != before:
            table.add_section()
            table.add_row(Text(student, style="italic"))
        before = line.student
        cells = [count, *(scores[number] for number in shown)]
        swept = f", {line.option.rpartition('.')[2]} {line.setting}" if line.option else ""
        table.add_row(f"  {line.objective}{swept}", *(Text(cell, style="bold" if bold else "") for cell, bold in cells))
    return table


def _cells(summary: Summary, line: Line) -> list[tuple[str, bool]]:
    best = [False, False, False, *(metric in line.best for metric in summary.metrics)]
    return list(zip(summary.cells(line), best, strict=True))
