"""No file imports, by whatever way, one that imports it: late imports and those for type checkers are counted.

import-linter sees the same imports, but its contract of floors says nothing about files within a floor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

import isobit

Graph = Mapping[str, Set[str]]

PACKAGE = Path(isobit.__file__).parent


def modules(package: Path) -> dict[str, Path]:
    """Name of every module of a package -> its file."""
    found = {}
    for path in package.rglob("*.py"):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, module: str, is_package: bool, known: Set[str]) -> Iterator[str]:
    """The modules of the package that a file imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")
            above = above[: len(above) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                full = f"{base}.{name.name}"
                yield from (found for found in (full if full in known else base,) if found in known)


def import_graph(package: Path) -> Graph:
    """Module -> the modules of the package that it imports."""
    found = modules(package)
    return {
        name: set(imported(ast.parse(path.read_bytes()), name, path.name == "__init__.py", found.keys())) - {name}
        for name, path in found.items()
    }


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules each of which imports, by way of others, every one of its group."""

    def reached(start: str) -> Set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    behind = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in behind[name] if name in behind[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def test_no_file_of_isobit_is_in_a_circle() -> None:
    graph = import_graph(PACKAGE)
    assert len(graph) > 200 and sum(map(len, graph.values())) > 800
    assert circles(graph) == []


@pytest.mark.parametrize(
    "back",
    ["import demo.a", "from demo import a", "from . import a", "from .a import A", "from demo.a import A",
     "def late():\n    from demo.a import A", "if TYPE_CHECKING:\n    from .a import A"],
)  # fmt: skip
def test_every_way_to_import_counts(tmp_path: Path, back: str) -> None:
    package = tmp_path / "demo"
    (package / "sub").mkdir(parents=True)
    files = {"__init__": "", "a": "from demo.b import B", "b": "from .sub import c", "sub/__init__": "", "c": ""}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    (package / "sub" / "c.py").write_text(back.replace("from . ", "from .. ").replace("from .a", "from ..a"))
    assert circles(import_graph(package)) == [["demo.a", "demo.b", "demo.sub.c"]]
    (package / "sub" / "c.py").write_text("import json")
    assert circles(import_graph(package)) == []
