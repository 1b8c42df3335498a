"""The river: which module imports which, drawn from the source without importing any of it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "compress_ssl"
FAMILIES = ("backbones", "datasets", "evaluations", "formats", "objectives", "pretraining")
# who may name a file of a family: the verbs, downstream of all of them; the family's own files
VERBS = {"demo", "doctor", "pretrain", "shrink", "embed", "distill", "evaluate", "voc", "benchmark", "report", "models"}
FINDERS = {
    "compress_ssl.encoder": {"compress_ssl.backbones.from_timm", "compress_ssl.backbones.from_torchvision"},
    "compress_ssl.filled": {"compress_ssl.backbones.from_timm", "compress_ssl.backbones.from_torchvision"},
}


def module_name(file: Path) -> str:
    parts = ("compress_ssl", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in its text but under TYPE_CHECKING.

    `from compress_ssl import __version__` reads a name of the root, the one that lies there.
    """
    found = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[name].read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "compress_ssl"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "compress_ssl":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES or node.module == "compress_ssl" else node.module)
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"{'.' * node.level}{node.module or ''}")
    return found


def test_the_drawing_sees_what_the_modules_import():
    """Were nothing found, every claim below would hold by itself."""
    assert {"compress_ssl.scorer", "compress_ssl.objectives", "compress_ssl.student"} <= imports("compress_ssl.distill")
    assert "compress_ssl.settings" in imports("compress_ssl.cli"), "imports inside functions count too"
    assert len(MODULES) > 40


def test_the_river_flows_one_way():
    """With a cycle, which module can be read, tested or imported first depends on luck."""
    graph = {name: imports(name) & MODULES.keys() for name in MODULES}
    # a family's package finds its files when it is asked; the files take from it what all of them share
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as trouble:
        pytest.fail(f"modules import each other: {' -> '.join(trouble.args[1])}")
    assert (
        order.index("compress_ssl.refusal")
        < order.index("compress_ssl.embeddings")
        < order.index("compress_ssl.distill")
    )


@pytest.mark.parametrize("name", MODULES)
def test_names_come_from_the_file_that_owns_them(name):
    """A name taken from the package root drags in everything that the root re-exports, and makes cycles."""
    from_root = {other for other in imports(name) if other.count(".") == 1 and other not in MODULES}
    assert from_root <= {"compress_ssl.__version__"}, f"{name} takes {from_root} from the package root"
    relative = {other for other in imports(name) if other.startswith(".")}
    assert not relative, f"{name} imports {relative} relatively"
    known = imports(name) - from_root
    assert known <= MODULES.keys(), f"{name} imports {known - MODULES.keys()}, which do not exist"


@pytest.mark.parametrize("family", FAMILIES)
def test_only_verbs_name_the_files_of_a_family(family):
    """A file that upstream code names cannot be taken away or replaced, and a new one would need a table to edit."""
    files = {name for name in MODULES if name.startswith(f"compress_ssl.{family}.")}
    assert files
    for name in MODULES.keys() - files:
        if name.removeprefix("compress_ssl.") in VERBS:
            continue
        named = imports(name) & files - FINDERS.get(name, set())
        assert not named, f"{name} names {named}"


def test_a_familys_package_does_not_import_its_files():
    """A file that is broken or needs something optional would take the whole family with it."""
    for family in FAMILIES:
        assert not {name for name in imports(f"compress_ssl.{family}") if name.startswith(f"compress_ssl.{family}.")}


def test_nothing_imports_the_command_line_and_no_verb_is_upstream():
    """A library user of an objective would start the argument parser, or the whole training."""
    for name in MODULES:
        assert "compress_ssl.cli" not in imports(name), name
        if name.removeprefix("compress_ssl.") not in VERBS | {"cli"}:
            verbs = imports(name) & {f"compress_ssl.{verb}" for verb in VERBS}
            # teachers and scores embed pictures as the verb does, and scores are written as the verb writes them; a
            # cell of a matrix is an ordinary run of the verbs
            allowed = {
                "teacher": {"embed"},
                "scorer": {"embed", "evaluate"},
                "plan": {"distill", "embed", "pretrain"},
                "cell": {"distill", "embed", "evaluate", "pretrain"},
            }.get(name.rpartition(".")[2], set())
            assert verbs <= {f"compress_ssl.{verb}" for verb in allowed}, f"{name}: {verbs}"


def test_every_helper_has_a_noun():
    """`utils` is where code goes to be written twice."""
    for name in MODULES:
        assert name.rpartition(".")[2] not in {"utils", "util", "helpers", "helper", "common", "misc"}, name
