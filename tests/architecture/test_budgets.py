"""Functions that fit a screen, and a few laws that a reader of the syntax tree can check."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from .tree import ROOT, nodes, sources, tree_of

if TYPE_CHECKING:
    from pathlib import Path

FUNCTION_LINES = 60
# Where a child process is given its environment, and where it finds the folder that it was given; and where it is
# settled how torch's threads wait, which changes no number.
READS_ENVIRONMENT = {
    "harness/common/threads.py",
    "harness/training/launching/agent.py",
    "harness/training/launching/every_node.py",  # which node of a job this is
    "harness/training/launching/worker.py",  # its rank
    "harness/evaluation/lmms/process.py",
    "harness/evaluation/lmms/official_tasks.py",
    "harness/records/provenance.py",
    "harness/records/tracking.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_exceptions_are_files_that_exist() -> None:
    for name in READS_ENVIRONMENT:
        assert (ROOT / name).is_file()


def test_functions_fit_a_screen() -> None:
    long = [
        f"{name}:{node.lineno} {node.name}"
        for name, node in nodes("regate", "harness")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES
    ]
    assert not long


def test_no_error_is_passed_over() -> None:
    passed = [
        f"{name}:{node.lineno}"
        for name, node in nodes("regate", "harness")
        if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
    ]
    assert not passed


def test_no_environment_variable_changes_what_a_run_does() -> None:
    reading = {
        name
        for name, node in nodes("regate", "harness")
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
        or (isinstance(node, ast.ImportFrom) and any(alias.name in ("environ", "getenv") for alias in node.names))
    }
    assert reading <= READS_ENVIRONMENT


def test_no_state_lives_in_modules() -> None:
    """No `global`, and nothing mutable at the top of a module that is not a constant by name."""
    mutable = [f"{name}:{node.lineno}" for name, node in nodes("regate", "harness") if isinstance(node, ast.Global)]
    for path in sources("regate", "harness"):
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, (ast.List, ast.Dict, ast.Set)):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                mutable += [
                    f"{name_of(path)}:{node.lineno}" for name in names if not name.isupper() and name != "__all__"
                ]
    assert not mutable


def test_inheritance_is_one_level_deep() -> None:
    """A class of ours may be a base, or have one of ours as base, not both. Exceptions and frozen models are flat."""
    bases: dict[str, set[str]] = {}
    for _, node in nodes("regate", "harness"):
        if isinstance(node, ast.ClassDef):
            named = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
            bases[node.name] = {base.id for base in named if isinstance(base, ast.Name)}
    deep = {
        f"{name} <- {parent} <- {grandparent}"
        for name, parents in bases.items()
        for parent in parents
        for grandparent in bases.get(parent, ())
        if grandparent in bases and not grandparent.endswith("Error")
    }
    assert not deep
