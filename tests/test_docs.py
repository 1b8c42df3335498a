"""Tables of docs/: every objective and every evaluation stands there, by the name that one types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compress_ssl import distill, evaluations, objectives
from compress_ssl.cli import parse

DOCS = Path(__file__).parents[1] / "docs"


def first_cells(page: str) -> list[tuple[str, str]]:
    """(row, name) of the rows of a page's tables that begin with a name in code."""
    return re.findall(r"^(\| `(\w+)`.*)$", (DOCS / page).read_text(), re.MULTILINE)


def test_every_objective_is_in_its_table_once() -> None:
    """An objective that is not in the table would not be found; one that is gone would be asked for."""
    named = [name for _, name in first_cells("objectives.md")]
    assert sorted(named) == sorted(objectives.names())


def test_every_evaluation_is_in_its_table_once() -> None:
    """A score that is not in the table would be read without its protocol."""
    named = [name for _, name in first_cells("evaluations.md")]
    assert sorted(named) == sorted(evaluations.names())


@pytest.mark.parametrize("name", evaluations.names())
def test_the_table_says_what_is_done_on_request(name: str) -> None:
    """Minutes would pass where nobody asked for them, or a score be missed that nobody knew to ask for."""
    row = next(row for row, found in first_cells("evaluations.md") if found == name)
    assert ("| on request" in row) == (name not in evaluations.usual())


def test_the_default_objective_is_said() -> None:
    """The table would call another one the default."""
    said = [name for row, name in first_cells("objectives.md") if row.split("|")[1].endswith(", the default ")]
    config = parse(distill.Config, ["--teacher", "a", "--student", "b", "--data", "c", "--out", "d"], "distill")
    assert said == [config.objective.name]
