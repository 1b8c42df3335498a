"""One HTML page from run folders: what the students kept, what they cost, how they got there, how to repeat it.

Reads only files, so a page can be made where the training ran or anywhere else, also while a run is still going on.
The page is one file: no script, no font, nothing is loaded from elsewhere; a content security policy inside it has the
browser enforce that. Ids and class names come from file names and are escaped.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import tyro

from compress_ssl.page import scores
from compress_ssl.page.confused import confused
from compress_ssl.page.curves import RUN_COLOURS, figures
from compress_ssl.page.elsewhere import by_layer, transfers
from compress_ssl.page.folders import Folder, read_folders
from compress_ssl.page.gallery import galleries, picture_rules
from compress_ssl.page.headline import heading, progress, sentence
from compress_ssl.page.models import compare, run_names
from compress_ssl.page.table import table
from compress_ssl.page.words import breakable, percent, whole
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import write_atomically


@dataclass(frozen=True, kw_only=True)
class Config:
    """One self-contained HTML page from run folders."""

    runs: tyro.conf.Positional[tuple[str, ...]]  # run folders, folders of results, or both, in the order to show
    out: Path | None = None  # the page, or a folder to put report.html in; without it, into the first of the folders
    title: str | None = None  # heading of the page; without it, named after the data


def run(config: Config) -> Path:
    """Write the page of `config.runs` and return its path.

    Raises: Refusal if a folder is missing, holds neither results nor metrics, or holds a file that cannot be read.
    """
    folders = read_folders(config.runs)
    out = config.out or folders[0].path / "report.html"
    if out.is_dir():
        out = out / "report.html"
    page = render(folders, title=config.title)
    try:
        write_atomically(out, page.encode("utf-8", "replace"))  # a folder name that is not UTF-8 shows as "?"
    except OSError as error:
        raise Refusal(f"expected to write {out}, got {error.strerror}: choose another --out") from error
    return out


def render(folders: Sequence[Folder], *, title: str | None) -> str:
    """The page as text."""
    judged = [folder for folder in folders if not _scored_elsewhere(folder, folders)]
    comparisons, models = compare(judged)
    names = run_names(folders, comparisons)
    scored = {model.place for one in comparisons for model in one.models}
    waiting = [folder for folder in folders if folder.results is None and folder.path.resolve() not in scored]
    curved = [folder for folder in folders if folder.train or folder.validation]
    colours = {folder.path.resolve(): position % RUN_COLOURS for position, folder in enumerate(curved)}
    tables = [{"sentence": sentence(one), **table(one, colours=colours)} for one in comparisons]
    elsewhere = transfers(judged, colours=colours)
    columns = [key for kind in ("metrics", "costs") for one in tables + elsewhere for key in one[kind]]
    shown = galleries(judged, models)
    numbers, rules = picture_rules(shown)

    template = importlib.resources.files("compress_ssl.page").joinpath("page.html").read_text(encoding="utf-8")
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"breakable": breakable, "whole": whole}
    jinja.globals |= {"percent": percent, "heading": scores.heading, "meaning": scores.meaning,
                      "meanings": scores.meanings}  # fmt: skip
    return jinja.from_string(template).render(
        title=title or heading(comparisons, list(names.values())),
        progress=[progress(folder, name=names[folder.label]) for folder in waiting],
        tables=tables,
        elsewhere=elsewhere,
        confused=confused([table["of"] for table in tables + elsewhere]),
        layers=by_layer(judged, colours=colours),
        columns=list(dict.fromkeys(columns)),
        figures=figures(curved, names),
        galleries=shown,
        run_colours=RUN_COLOURS,
        picture_numbers=numbers,
        picture_rules=rules,
        sources=[(names[folder.label], folder) for folder in folders],
    )


def _scored_elsewhere(folder: Folder, folders: Sequence[Folder]) -> bool:
    """Whether another folder's results hold this run as a model: its own held-out scores would be a second table."""
    return any(
        Path(entry.get("spec", "")).resolve() == folder.path.resolve()
        for other in folders
        if other is not folder and other.results is not None
        for entry in other.results["models"].values()
    )
