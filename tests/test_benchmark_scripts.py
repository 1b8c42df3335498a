"""The scripts under benchmarks/, which no test runs: what they take from the package is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_script_imports_and_names_of_the_package_exists(script: Path) -> None:
    """A renamed function would be noticed by whoever repeats a table, a year later."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    modules = {}
    for line in ast.walk(tree):
        if not isinstance(line, ast.ImportFrom) or not (line.module or "").startswith("compress_ssl"):
            continue
        owner = importlib.import_module(line.module)
        for name in line.names:
            if not hasattr(owner, name.name):
                importlib.import_module(f"{line.module}.{name.name}")
            taken = getattr(owner, name.name)
            if isinstance(taken, type(importlib)):
                modules[name.asname or name.name] = taken
    rebound = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    rebound |= {argument.arg for argument in ast.walk(tree) if isinstance(argument, ast.arg)}
    modules = {name: module for name, module in modules.items() if name not in rebound}
    for use in ast.walk(tree):
        if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id in modules:
            assert hasattr(modules[use.value.id], use.attr), f"{use.value.id}.{use.attr}, line {use.lineno}"


def test_there_are_scripts() -> None:
    """A moved folder would pass unseen."""
    assert len(SCRIPTS) > 15
