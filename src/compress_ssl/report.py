"""One HTML page from run folders: what the students kept, what they cost, how they got there, how to repeat it.

Reads only files, so a page can be made where the training ran or anywhere else, also while a run is still going on.
The page is one file: no script, no font, nothing is loaded from elsewhere; a content security policy inside it has the
browser enforce that. Ids and class names come from file names and are escaped.

Cost: 20 kB a figure, 0.2–1.5 kB a picture; pictures beyond a budget are made smaller: a page stays below 2 MB.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import tyro

from compress_ssl.page.curves import RUN_COLOURS, figures
from compress_ssl.page.folders import Folder, read_folders
from compress_ssl.page.gallery import Album, galleries
from compress_ssl.page.headline import progress, sentence, title
from compress_ssl.page.models import compare, run_names
from compress_ssl.page.provenance import provenance
from compress_ssl.page.table import COSTS, metric_columns, table
from compress_ssl.page.words import breakable
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
    page = render(folders, heading=config.title)
    try:
        write_atomically(out, page.encode("utf-8", "replace"))  # a file name that is not UTF-8 shows as "?"
    except OSError as error:
        raise Refusal(f"expected to write {out}, got {error.strerror}: choose another --out") from error
    return out


def render(folders: Sequence[Folder], *, heading: str | None) -> str:
    """The page as text."""
    comparisons, models = compare(folders)
    names = run_names(folders, comparisons)
    scored = {model.place for one in comparisons for model in one.models}
    waiting = [folder for folder in folders if folder.results is None and folder.path.resolve() not in scored]
    curved = [folder for folder in folders if folder.train or folder.validation]
    colours = {folder.path.resolve(): position % RUN_COLOURS for position, folder in enumerate(curved)}
    tables = [table(one, colours=colours) for one in comparisons]
    notes = [
        *metric_columns(comparisons),
        *(column for column in COSTS if any(column in one["costs"] for one in tables)),
    ]
    album = Album()
    template = importlib.resources.files("compress_ssl.page").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment.from_string(template).render(
        title=heading or title(comparisons, list(names.values())),
        sentences=[sentence(one) for one in comparisons],
        progress=[progress(folder, name=names[folder.label]) for folder in waiting],
        tables=tables,
        notes=notes,
        note_ids={column.key: position for position, column in enumerate(notes)},
        figures=figures(curved, names),
        galleries=galleries(folders, models, album),
        picture_rules=album.rules(),
        sources=[provenance(folder, name=names[folder.label]) for folder in folders],
    )
